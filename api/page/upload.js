// The dialog for adding images: which files, to which collection, with which labels.

import { batches } from "./batches.js";
import * as collections from "./collections.js";
import { $, bytes, many } from "./dom.js";
import { chosen, folderOf, looksLikeImage } from "./files.js";
import { busy, send } from "./sending.js";
import { state } from "./state.js";

const MOST_FOLDERS = 100; // each label is a job of its own

const dialog = $("upload");

let files = [];
let left = 0;

/** Open it, with files or without. They are sent when the user says so. */
export function open(found = []) {
  if (!dialog.open) {
    files = [];
    left = 0;
    $("upload-collection").value = state.collection || "images";
    dialog.showModal();
    $("upload-title").focus();
  }
  take(found);
}

function take(found) {
  const images = found.filter(({ file }) => looksLikeImage(file));
  files = [...files, ...images];
  left += found.length - images.length;
  if (images.some(({ path }) => path.includes("/"))) $("upload-labels").value = "folder";
  render();
}

function render() {
  const size = files.reduce((sum, { file }) => sum + file.size, 0);
  const said = [];
  if (files.length) said.push(`${many(files.length, "image")}, ${bytes(size)}, in ${many(planned().length, "job")}.`);
  if (left) said.push(`${many(left, "file")} left out: no images.`);
  $("chosen").textContent = said.join(" ");
  $("one-label-row").hidden = $("upload-labels").value !== "one";
  $("upload-problem").textContent = problem();
  $("upload-start").disabled = !files.length || Boolean(problem());
  $("upload-start").textContent = files.length ? `Add ${many(files.length, "image")}` : "Add";
}

const planned = () => batches(files, $("upload-labels").value, $("one-label").value.trim());

function problem() {
  if (busy()) return "Another upload is still under way. This one can start when that has ended.";
  const folders = $("upload-labels").value === "folder" ? new Set(files.map(({ path }) => folderOf(path))).size : 0;
  if (folders > MOST_FOLDERS) {
    return `${many(folders, "folder")} would make as many jobs. clipfleet index FOLDER --label-from-folder does it in one.`;
  }
  return left && !files.length ? "None of these is an image. JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF can be added." : "";
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
  await send(name, parts);
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
