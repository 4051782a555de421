// One image in the detail: its larger picture, and what can be done with its file.

import { may } from "./access.js";
import * as api from "./api.js";
import { ask } from "./ask.js";
import { announce, button, bytes, el } from "./dom.js";
import * as key from "./key.js";
import { copy, drawn, fileName, nameOfType, opens, pathOf, saves, webAddress } from "./originals.js";
import { fill } from "./pictures.js";
import { href, state } from "./state.js";
import { thumbnail } from "./tiles.js";

const SMALL = 256; // pixels of a thumbnail
const MODERATE = 8_000_000; // bytes of an original that the browser may draw itself where there is no preview
const SAID_MS = 2_000;

export const pictureOf = (id) => thumbnail({ id });

/** A preview of a thousand pixels in place of the thumbnail, as soon as it is there. */
export function showLarger(picture, image, signal) {
  const { id, width, height } = image;
  if (width && height) picture.style.setProperty("--shape", Math.min(2.4, Math.max(0.6, width / height)));
  if (webAddress(image) || (width && Math.max(width, height) <= SMALL)) return;
  const larger = el("img", { alt: "", decoding: "async" });
  larger.addEventListener("load", () => {
    if (!signal.aborted) picture.querySelector(".frame").replaceChildren(larger);
  });
  larger.addEventListener("error", () => {
    if (!signal.aborted) showOriginal(picture, image, signal);
  }, { once: true });
  fill(larger, api.preview(state.collection, id, state.namespace));
}

/** Where no preview can be made, the browser draws the original, if it can and if that is not too large. */
async function showOriginal(picture, { id }, signal) {
  const { type, bytes: size } = await api.originalAbout(state.collection, id, state.namespace, signal).catch(() => ({}));
  if (!drawn(type) || size > MODERATE || signal.aborted) return;
  const original = el("img", { alt: "", decoding: "async" });
  original.addEventListener("load", () => {
    if (!signal.aborted) picture.querySelector(".frame").replaceChildren(original);
  });
  fill(original, pathOf(id));
}

/** What there is of the file, and the buttons for it. `removed(id)` is called when the image is gone. */
export async function filePart(place, image, { signal, removed }) {
  const problem = el("p", { class: "wrong", role: "alert" });
  const actions = el("p", { class: "actions" });
  const about = el("p", { class: "muted about" });
  const failed = (error) => {
    problem.textContent = error.message;
  };
  const others = [
    copying("Copy link", () => new URL(href({ view: "search", text: "", terms: [], where: [], image: image.id }), document.baseURI).href, failed),
    copying("Copy id", () => image.id, failed),
    may("write") ? button("Remove", () => remove(image, removed, failed), { class: "button needs-write" }) : null,
  ].filter(Boolean);
  place.replaceChildren(actions, about, problem);
  const web = webAddress(image);
  if (web) {
    actions.append(el("a", { class: "button", href: web, target: "_blank", rel: "noopener noreferrer" }, "Open"), ...others);
    about.textContent = "The file is on another server.";
    return;
  }
  actions.append(...others);
  try {
    const { type, bytes: size } = await api.originalAbout(state.collection, image.id, state.namespace, signal);
    actions.prepend(...fileLinks(image.id, type, failed));
    about.textContent = [nameOfType(type), size ? bytes(size) : ""].filter(Boolean).join(", ");
  } catch (error) {
    if (error.name !== "AbortError") about.textContent = `The file cannot be opened: ${error.message}`;
  }
}

function fileLinks(id, type, failed) {
  const open = el("a", { class: "button", href: pathOf(id), target: "_blank", rel: "noopener" }, "Open");
  const download = el("a", { class: "button", href: pathOf(id, { download: true }), download: fileName(id, type) }, "Download");
  if (key.now()) {
    opens(open, id, failed);
    saves(download, id, failed);
  }
  return drawn(type) ? [open, download] : [download];
}

/** A button that says that it has copied. */
function copying(name, what, failed) {
  const made = button(name, async () => {
    try {
      await copy(what(), made);
    } catch (error) {
      failed(error);
      return;
    }
    made.textContent = "Copied";
    announce("Copied");
    setTimeout(() => {
      made.textContent = name;
    }, SAID_MS);
  });
  return made;
}

async function remove({ id }, removed, failed) {
  const sure = await ask({
    title: "Remove this image?",
    text: `It goes out of the collection ${state.collection}, with its metadata and thumbnail. The file that it came from stays where it is.`,
    yes: "Remove",
  });
  if (!sure) return;
  try {
    await api.deleteImage(state.collection, id, state.namespace);
  } catch (error) {
    failed(error);
    return;
  }
  announce("The image is removed");
  removed(id);
}
