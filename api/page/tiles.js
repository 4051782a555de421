// Images as tiles, and how the keyboard moves among them.

import * as api from "./api.js";
import { cutInTheMiddle, el, icon, nameOf, score } from "./dom.js";
import { fill } from "./pictures.js";
import { go, href, state } from "./state.js";
import { addTerm, avoid, moreLike } from "./terms.js";

const EDGE = 256;
const NARROWEST = 0.64; // width to height of a tile; the rest of the picture is cut off
const WIDEST = 2.6;
const NARROW = 0.9;

/** `lazy`: fetch the thumbnail only when it is about to be seen. */
export function tile(match, { scored = true, lazy = true, focusable = false } = {}) {
  const name = nameOf(match.id);
  const link = el("a", {
    href: href({ image: match.id }), class: "tile", "data-id": match.id, title: match.id, tabindex: focusable ? 0 : -1,
    onclick: (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return; // a new tab, as links do
      event.preventDefault();
      go({ image: match.id }, state.image ? { replace: true } : { over: true });
    },
  });
  const item = el("li", {}, link);
  link.append(thumbnail(match, lazy, (picture) => learnShape(item, picture)), caption(match, name, scored));
  if (match.duplicates) link.firstChild.append(duplicates(match.duplicates));
  item.append(el("button", {
    type: "button", class: "like", tabindex: -1, "aria-label": `More like ${name}`, title: "More like this (m)",
    onclick: () => moreLike(match.id),
  }, icon("like")));
  if (match.width) shape(item, match.width / match.height);
  return item;
}

/** The label says what an image is; without one, its name does. */
function caption(match, name, scored) {
  return el("span", { class: "caption" },
    el("span", { class: match.label ? "name unseen" : "name" }, ...(match.label ? [name] : cutInTheMiddle(name))),
    match.label ? el("span", { class: "label" }, match.label) : null,
    scored ? el("span", { class: "score" }, el("span", { class: "unseen" }, "score "), score(match.score)) : null);
}

const duplicates = (number) => el("span", { class: "duplicates", title: `${number} near-duplicates are left out` }, `+${number}`,
  el("span", { class: "unseen" }, " near-duplicates"));

function shape(item, ratio) {
  item.style.setProperty("--ratio", Math.min(WIDEST, Math.max(NARROWEST, ratio)).toFixed(3));
  item.classList.toggle("narrow", ratio < NARROW);
}

/** A size that nobody knew (workers of the release before do not tell it): known once the picture is there.
 * Rows above the view stay as they are. */
function learnShape(item, { naturalWidth, naturalHeight }) {
  if (item.style.getPropertyValue("--ratio") || !naturalWidth || item.getBoundingClientRect().bottom < 0) return;
  shape(item, naturalWidth / naturalHeight);
}

export function thumbnail({ id, width, collection = state.collection, namespace = state.namespace }, lazy = false, loaded = null) {
  const frame = el("span", { class: "frame" });
  const picture = el("img", { width: EDGE, height: EDGE, alt: "", decoding: "async" });
  picture.addEventListener("error", () => picture.replaceWith(el("span", { class: "no-picture" }, "no picture")));
  if (loaded) picture.addEventListener("load", () => loaded(picture));
  const kind = JSON.stringify([collection, namespace, width === 0]);
  fill(picture, api.thumbnail(collection, id, namespace), width === undefined ? { lazy } : { lazy, kind, unsure: width === 0 });
  frame.append(picture);
  return frame;
}

let column = null; // where on the page somebody moves up and down

const middleOf = ({ parentElement: { offsetLeft, offsetWidth } }) => offsetLeft + offsetWidth / 2;

/** One tile of the list takes part in Tab; arrows, Home and End move on from there. */
export function withKeys(list, { up } = {}) {
  list.addEventListener("keydown", (event) => {
    const link = event.target.closest("a.tile");
    if (!link || event.metaKey || event.ctrlKey || event.altKey) return;
    const links = [...list.querySelectorAll("a.tile")];
    column = event.key === "ArrowUp" || event.key === "ArrowDown" ? column ?? middleOf(link) : null;
    const next = target(event.key, links, links.indexOf(link));
    if (next === "above") up?.();
    else if (next) focus(next);
    else if (!act(event.key, link.dataset.id)) return;
    event.preventDefault();
  });
  list.addEventListener("pointerdown", () => {
    column = null;
  });
  list.addEventListener("focusin", ({ target: { classList }, target: link }) => {
    if (!classList.contains("tile")) return;
    for (const other of list.querySelectorAll('a.tile[tabindex="0"]')) other.tabIndex = -1;
    link.tabIndex = 0;
  });
}

function target(key, links, at) {
  switch (key) {
    case "ArrowRight": return links[Math.min(links.length - 1, at + 1)];
    case "ArrowLeft": return links[Math.max(0, at - 1)];
    case "ArrowDown": return inRow(links, at, 1) ?? links.at(-1);
    case "ArrowUp": return inRow(links, at, -1) ?? "above";
    case "Home": return links[0];
    case "End": return links.at(-1);
    default: return null;
  }
}

/** The tile of the next row, or of the one before, that is nearest to the column. */
function inRow(links, at, step) {
  const topOf = (link) => link.parentElement.offsetTop;
  const farFrom = (link) => Math.abs(middleOf(link) - column);
  let row = null;
  let best = null;
  for (let n = at + step; n >= 0 && n < links.length; n += step) {
    const top = topOf(links[n]);
    if (top === topOf(links[at])) continue;
    row ??= top;
    if (top !== row) break;
    if (!best || farFrom(links[n]) < farFrom(best)) best = links[n];
  }
  return best;
}

export function focus(link) {
  link.focus();
  link.scrollIntoView({ block: "nearest" });
}

function act(key, id) {
  if (key === "m") moreLike(id);
  else if (key === "+") addTerm({ kind: "id", value: id });
  else if (key === "-") avoid({ kind: "id", value: id });
  else return false;
  return true;
}
