// The file that an image was made of: shown, opened and saved, with a key or without one.

import * as api from "./api.js";
import { fileOf } from "./dom.js";
import * as key from "./key.js";
import { state } from "./state.js";

const TYPES = { "image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WebP", "image/gif": "GIF", "image/bmp": "BMP",
  "image/tiff": "TIFF", "image/avif": "AVIF", "image/heic": "HEIC" };
const ENDINGS = { "image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/gif": ".gif", "image/bmp": ".bmp",
  "image/tiff": ".tif", "image/avif": ".avif", "image/heic": ".heic" };
const SHOWN_BY_BROWSERS = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/avif"];

export const nameOfType = (type) => TYPES[type] ?? type;
export const drawn = (type) => SHOWN_BY_BROWSERS.includes(type);

/** The address of an image of the web; "" for all others, which the service has itself. */
export const webAddress = (image) => (/^https?:\/\//i.test(image.uri) && !/\.(tar|zip|tgz|tbz2?|txz|tar\.\w+)(\?[^#]*)?#./i.test(image.uri) ? image.uri : "");

export const pathOf = (id, more) => api.original(state.collection, id, state.namespace, more);

/** The name under which it is saved. */
export function fileName(id, type) {
  const name = fileOf(id.replace(/^.*#(?=.)/s, "")).replace(/[\u0000-\u001f<>:"/\\|?*]/g, "_").slice(-180);
  return /\.(jpe?g|jpe|jfif|mpo|png|apng|webp|gif|bmp|dib|tiff?|avif|hei[cf]|hif)$/i.test(name) ? name : `${name}${ENDINGS[type] ?? ""}`;
}

/** A link that opens it in a tab of its own. With a key, which no link can carry, it is fetched first. */
export function opens(link, id, failed) {
  link.addEventListener("click", async (event) => {
    if (!key.now()) return;
    event.preventDefault();
    const tab = window.open("", "_blank");
    try {
      const answer = await api.open(pathOf(id));
      const url = URL.createObjectURL(await answer.blob());
      if (tab) tab.location = url;
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (error) {
      tab?.close();
      failed(error);
    }
  });
}

/** A link that saves it. */
export function saves(link, id, failed) {
  link.addEventListener("click", async (event) => {
    if (!key.now()) return;
    event.preventDefault();
    try {
      const answer = await api.open(pathOf(id));
      save(await answer.blob(), fileName(id, answer.headers.get("Content-Type")));
    } catch (error) {
      failed(error);
    }
  });
}

export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Put a text on the clipboard. Pages that are not served over https or from this machine have an older way only. */
export async function copy(text, near) {
  try {
    await navigator.clipboard.writeText(text);
    return;
  } catch {
    // see below
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  near.after(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  near.focus();
  if (!copied) throw new Error("The browser does not let this page copy.");
}
