// The dialog for adding images: which files, to which collection, with which labels.

import { batches } from "./batches.js";
import * as collections from "./collections.js";
import { $, bytes, many } from "./dom.js";
import { chosen, endingOf, looksLikeImage } from "./files.js";
import { busy, send } from "./sending.js";
import { state } from "./state.js";

const MOST_SUFFIXES = 50;
const dialog = $("upload");

let files = [];
let left = []; // the names of files that are no images

/** Open it, with files or without. They are sent when the user says so. */
export function open(found = []) {
  if (!dialog.open) {
    files = [];
    left = [];
    $("upload-collection").value = state.collection || "images";
    dialog.showModal();
    $("upload-title").focus();
  }
  take(found);
}

function take(found) {
  const images = found.filter(({ file }) => looksLikeImage(file));
  files = [...files, ...images];
  left = [...left, ...found.filter(({ file }) => !looksLikeImage(file)).map(({ file }) => file.name)];
  if (images.some(({ path }) => path.includes("/"))) $("upload-labels").value = "folder";
  render();
}

function render() {
  const sent = planned();
  const number = sent.reduce((sum, batch) => sum + batch.files.length, 0);
  const size = sent.reduce((sum, batch) => sum + batch.bytes, 0);
  const said = [];
  if (number) said.push(`${many(number, "image")}, ${bytes(size)}.`);
  if (left.length) said.push(`${many(left.length, "file")} left out: no images.`);
  $("chosen").textContent = said.join(" ");
  $("one-label-row").hidden = $("upload-labels").value !== "one";
  $("upload-problem").textContent = problem();
  $("upload-start").disabled = !files.length || Boolean(problem());
  $("upload-start").textContent = number ? `Add ${many(number, "image")}` : "Add";
}

const planned = () => batches(files, $("upload-labels").value, $("one-label").value.trim());

function problem() {
  if (busy()) return "Another upload is still under way. This one can start when that has ended.";
  return left.length && !files.length ? "None of these is an image. JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF can be added." : "";
}

async function start(event) {
  event.preventDefault();
  const name = $("upload-collection").value.trim();
  const parts = planned();
  $("upload-start").disabled = true;
  $("upload-start").textContent = "Starting…";
  try {
    await collections.require(name);
  } catch (error) {
    render();
    $("upload-problem").textContent = error.message;
    return;
  }
  dialog.close();
  if (name !== state.collection) collections.choose(name);
  await send(name, parts, { left_out: counted(left), name: nameOf(files) });
}

/** The number of files by suffix. */
function counted(names) {
  const counts = {};
  for (const name of names) {
    const suffix = endingOf(name);
    const known = suffix in counts || Object.keys(counts).length < MOST_SUFFIXES;
    counts[known ? suffix : "*"] = (counts[known ? suffix : "*"] ?? 0) + 1;
  }
  return counts;
}

/** What was chosen: the folder if all are in one, else the number of files. */
function nameOf(some) {
  const tops = new Set(some.map(({ path }) => (path.includes("/") ? path.split("/")[0] : "")));
  return tops.size === 1 && !tops.has("") ? [...tops][0] : many(some.length, "file");
}

$("add").addEventListener("click", () => open());
$("choose-files").addEventListener("click", () => $("files").click());
$("choose-folder").addEventListener("click", () => $("folder").click());
for (const input of [$("files"), $("folder")]) {
  input.addEventListener("change", () => {
    take(chosen(input));
    input.value = "";
  });
}
$("upload-labels").addEventListener("change", render);
$("one-label").addEventListener("input", render);
$("upload-form").addEventListener("submit", start);
