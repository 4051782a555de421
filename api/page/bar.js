// The search field: words, the chips before them, and image files to search by.

import * as api from "./api.js";
import { current } from "./collections.js";
import { $, announce, el } from "./dom.js";
import { looksLikeImage } from "./files.js";
import { notify } from "./results.js";
import { go, state } from "./state.js";
import { addTerm, renderTerms } from "./terms.js";

const MOST_IMAGES = 8;
const PREVIEW = 64;

const words = $("words");

let written = "";

/** Leaves alone what is being typed: the page is also rendered because something was loaded. */
export function render() {
  renderTerms($("terms"));
  if (state.text !== written && words.value.trim() !== state.text) words.value = state.text;
  written = state.text;
  offerToCombine();
}

function offerToCombine() {
  $("combine").hidden = !words.value.trim();
  $("query").classList.toggle("filled", Boolean(words.value || state.terms.length));
}

/** The words become a chip, and the field is free for more. `-snow` is a part to avoid. */
function keepWords(weight) {
  const text = words.value.trim();
  if (!text) return;
  words.value = "";
  state.text = "";
  addTerm(text.length > 1 && text.startsWith("-") ? { kind: "text", value: text.slice(1).trim(), weight: -1 } : { kind: "text", value: text, weight });
  words.focus();
}

$("query").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = words.value.trim();
  if (text.length > 1 && text.startsWith("-")) keepWords(-1);
  else go({ text, image: "", view: "search" });
});
words.addEventListener("input", offerToCombine);
words.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.shiftKey) {
    event.preventDefault();
    keepWords(1);
  } else if (event.key === "Backspace" && !words.value && state.terms.length) {
    go({ terms: state.terms.slice(0, -1) });
    words.focus();
  } else if (event.key === "Escape" && (words.value || state.terms.length)) {
    event.preventDefault();
    words.value = "";
    go({ text: "", terms: [] });
  }
});
$("and").addEventListener("click", () => keepWords(1));
$("not").addEventListener("click", () => keepWords(-1));
$("query").addEventListener("click", (event) => event.target === $("query") && words.focus());
$("by-image").addEventListener("click", () => $("image-file").click());
$("image-file").addEventListener("change", ({ target }) => {
  searchByFiles([...target.files]);
  target.value = "";
});

/** One image replaces the query; several are combined. */
export async function searchByFiles(files) {
  const images = files.filter(looksLikeImage).slice(0, MOST_IMAGES);
  if (!images.length) {
    notify(`${files[0]?.name ?? "This"} is no image. JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF can be searched by.`);
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
    notify(`${images.map((file) => file.name).join(", ")}: ${error.message.replace(/^images\[\d+\]: /, "")}`);
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
