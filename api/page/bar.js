// The search field: words, the chips before them, and image files to search by.

import * as api from "./api.js";
import { current } from "./collections.js";
import { $, announce, el, sentence } from "./dom.js";
import { isImageUrl, looksLikeImage } from "./files.js";
import { notify } from "./results.js";
import { go, state } from "./state.js";
import { addTerm, avoid, renderTerms } from "./terms.js";

const MOST_IMAGES = 8;
const PREVIEW = 64;

const words = $("words");

let written = "";
let avoiding = false; // the next words are a part to avoid

/** Leaves alone what is being typed: the page is also rendered because something was loaded. */
export function render() {
  renderTerms($("terms"));
  if (state.text !== written && words.value.trim() !== state.text) words.value = state.text;
  written = state.text;
  offerToCombine();
}

function offerToCombine() {
  $("combine").hidden = !(words.value.trim() || state.terms.length) || avoiding;
  $("and").hidden = !words.value.trim();
  $("query").classList.toggle("filled", Boolean(words.value || state.terms.length || avoiding));
  $("avoiding").hidden = !avoiding;
  words.placeholder = avoiding ? "what to avoid" : state.terms.length ? "and more words" : SEARCH;
}

const SEARCH = words.placeholder;

/** The words become a chip, and the field is free for more. `-snow` is a part to avoid. */
function keepWords() {
  const text = words.value.trim();
  if (!text) return;
  const minus = text.length > 1 && text.startsWith("-");
  const less = minus || avoiding;
  avoiding = false;
  words.value = "";
  state.text = "";
  const term = isImageUrl(text) ? { kind: "url", value: text } : { kind: "text", value: minus ? text.slice(1).trim() : text };
  if (less) avoid(term);
  else addTerm(term);
  words.focus();
}

/** "a dog in water [not] people": what is there is kept, and what comes next is avoided. */
function avoidNext() {
  keepWords();
  avoiding = true;
  offerToCombine();
  words.focus();
}

$("query").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = words.value.trim();
  if (avoiding || (text.length > 1 && text.startsWith("-"))) keepWords();
  else if (isImageUrl(text)) searchByUrl(text);
  else go({ text, image: "", view: "search" });
});
words.addEventListener("input", offerToCombine);
words.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.shiftKey) {
    event.preventDefault();
    keepWords();
  } else if (event.key === "Backspace" && !words.value && avoiding) {
    event.preventDefault();
    stopAvoiding();
  } else if (event.key === "Backspace" && !words.value && state.terms.length) {
    go({ terms: state.terms.slice(0, -1) });
    words.focus();
  } else if (event.key === "Escape" && (words.value || state.terms.length || avoiding)) {
    event.preventDefault();
    avoiding = false;
    words.value = "";
    go({ text: "", terms: [] });
    offerToCombine();
  }
});

function stopAvoiding() {
  avoiding = false;
  offerToCombine();
  words.focus();
}

$("and").addEventListener("click", keepWords);
$("not").addEventListener("click", avoidNext);
$("avoiding").addEventListener("click", stopAvoiding);
$("query").addEventListener("click", (event) => event.target === $("query") && words.focus());
$("by-image").addEventListener("click", () => $("image-file").click());
$("image-file").addEventListener("change", ({ target }) => {
  searchByFiles([...target.files]);
  target.value = "";
});

/** An image somewhere else replaces the query. The service fetches it. */
export function searchByUrl(url) {
  words.value = "";
  go({ text: "", terms: [{ kind: "url", value: url, weight: 1 }], image: "", view: "search" });
}

/** One image replaces the query; several are combined. */
export async function searchByFiles(files) {
  const images = files.filter(looksLikeImage).slice(0, MOST_IMAGES);
  if (!images.length) {
    notify(`${files[0]?.name ?? "This"} is no image. JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF can be searched by.`, { wrong: true });
    return;
  }
  if (!current()) {
    notify("There is nothing to search in yet. Add images first.");
    return;
  }
  $("terms").append(el("li", { class: "chip waiting" }, el("span", { class: "what" }, `reading ${images[0].name}…`)));
  announce("Reading the image");
  try {
    const terms = await Promise.all(images.map(termOf));
    go({ text: "", terms, image: "", view: "search" });
  } catch (error) {
    render();
    const names = images.map((file) => file.name).join(", ");
    notify(sentence(`${names}: ${error.message.replace(/^images\[\d+\]: /, "")}`), { wrong: true });
  }
}

async function termOf(file) {
  const [vector, preview] = await Promise.all([api.embed(file, current().model), previewOf(file)]);
  return { kind: "image", value: file.name || "pasted image", weight: 1, vector, preview };
}

async function previewOf(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = PREVIEW / Math.max(bitmap.width, bitmap.height);
    const canvas = el("canvas", { width: Math.ceil(bitmap.width * scale), height: Math.ceil(bitmap.height * scale) });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return canvas.toDataURL("image/webp", 0.8);
  } catch {
    return ""; // TIFF, for one: the service reads more kinds than browsers do
  }
}
