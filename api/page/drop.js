// Files that are dragged or pasted onto the page: one place to search by them, one to add them.

import { may } from "./access.js";
import { searchByFiles, searchByUrl } from "./bar.js";
import { $, sentence } from "./dom.js";
import { dropped, isImageUrl, looksLikeImage } from "./files.js";
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
  const found = await dropped(event.dataTransfer).catch((error) => notify(sentence(`This cannot be read: ${error.message}`), { wrong: true }));
  if (!found?.length) return;
  const toAdd = may("write") && ($("upload").open || zone === "add" || (zone !== "search" && found.length > 1));
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
  if ($("upload").open) return;
  const text = event.clipboardData?.getData("text/plain").trim() ?? "";
  if (!files.length) {
    if (isImageUrl(text) && !event.target.closest?.("input, select, textarea, dialog")) searchByUrl(text);
    return;
  }
  event.preventDefault();
  searchByFiles(files.some(looksLikeImage) ? files.filter(looksLikeImage) : files);
});
