// Files that are dragged or pasted onto the page: one place to search by them, one to add them.

import { searchByFiles } from "./bar.js";
import { $ } from "./dom.js";
import { dropped, looksLikeImage } from "./files.js";
import { notify } from "./results.js";
import { go } from "./state.js";
import * as upload from "./upload.js";

const overlay = $("drop");

const carriesFiles = ({ dataTransfer }) => [...(dataTransfer?.types ?? [])].includes("Files");

addEventListener("dragenter", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  if (!$("upload").open) overlay.hidden = false;
});

addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  for (const zone of overlay.children) zone.classList.toggle("over", zone === zoneOf(event));
});

addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) overlay.hidden = true;
});

addEventListener("drop", async (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  const zone = zoneOf(event)?.dataset.zone;
  overlay.hidden = true;
  const found = await dropped(event.dataTransfer).catch((error) => notify(`This cannot be read: ${error.message}`));
  if (!found?.length) return;
  const toAdd = $("upload").open || zone === "add" || (zone !== "search" && found.length > 1);
  if (toAdd) {
    go({ image: "" }, { replace: true });
    upload.open(found);
  } else {
    searchByFiles(found.map(({ file }) => file));
  }
});

const zoneOf = (event) => event.target.closest?.(".zone");

addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length || $("upload").open) return;
  event.preventDefault();
  searchByFiles(files.some(looksLikeImage) ? files.filter(looksLikeImage) : files);
});
