// Thumbnails. An <img> sends no key, so with one they are fetched here, shortly before they are seen.

import * as key from "./key.js";

const paths = new WeakMap();

/** Shows what lies at `path`; the image has the event `error` when there is nothing. */
export function fill(image, path, { lazy = false } = {}) {
  paths.set(image, path);
  if (!key.now()) image.src = path;
  else if (lazy) observer.observe(image);
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
