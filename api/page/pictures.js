// Thumbnails. An <img> sends no key, so with one they are fetched here, shortly before they are seen.
//
// Vectors may have no picture. Each missing one is an error in the console of the browser and a request
// for nothing, so of images without a known size a few are asked for first, and none any more if these
// have no picture.

import * as key from "./key.js";

const TRIED = 4;
const MOST_MISSING = 24;

const paths = new WeakMap();
const kinds = new Map();

/** Shows what lies at `path`; the image has the event `error` when there is nothing.
 *
 * `kind`: names images of which all are likely to have a picture, or none. `unsure`: they may have none. */
export function fill(image, path, { lazy = false, kind = "", unsure = false } = {}) {
  paths.set(image, path);
  const those = kindOf(kind);
  if (kind) watch(image, those);
  if (those.missing >= (unsure ? TRIED : MOST_MISSING) && !those.found) queueMicrotask(() => image.dispatchEvent(new Event("error")));
  else if (kind && unsure && !those.found && those.tried >= TRIED) those.waiting.push([image, lazy]);
  else {
    those.tried += 1;
    begin(image, lazy);
  }
}

function kindOf(kind) {
  if (!kinds.has(kind)) kinds.set(kind, { tried: 0, found: 0, missing: 0, waiting: [] });
  return kinds.get(kind);
}

function watch(image, those) {
  image.addEventListener("load", () => {
    those.found += 1;
    for (const [other, lazy] of those.waiting.splice(0)) begin(other, lazy);
  }, { once: true });
  image.addEventListener("error", () => {
    those.missing += 1;
    if (those.found || those.missing < TRIED) return;
    for (const [other] of those.waiting.splice(0)) other.dispatchEvent(new Event("error"));
  }, { once: true });
}

function begin(image, lazy) {
  if (!key.now()) {
    if (lazy) image.loading = "lazy";
    image.src = paths.get(image);
  } else if (lazy) observer.observe(image);
  else load(image);
}

const observer = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    observer.unobserve(target);
    load(target);
  }
}, { rootMargin: "600px" });

async function load(image) {
  const answer = await fetch(paths.get(image), { headers: key.headers() }).catch(() => null);
  if (!answer?.ok) {
    image.dispatchEvent(new Event("error"));
    return;
  }
  const url = URL.createObjectURL(await answer.blob());
  for (const end of ["load", "error"]) image.addEventListener(end, () => URL.revokeObjectURL(url), { once: true });
  image.src = url;
}
