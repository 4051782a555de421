// Images as tiles, and how the keyboard moves among them.

import * as api from "./api.js";
import { el, icon, nameOf, score } from "./dom.js";
import { fill } from "./pictures.js";
import { go, href, state } from "./state.js";
import { addTerm, moreLike } from "./terms.js";

const EDGE = 256;

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
  }, thumbnail(match, lazy),
  el("span", { class: "caption" }, el("span", { class: "name" }, name),
    scored ? el("span", { class: "score" }, el("span", { class: "unseen" }, "score "), score(match.score)) : null,
    match.label ? el("span", { class: "label" }, match.label) : null));
  const like = el("button", {
    type: "button", class: "like", tabindex: -1, "aria-label": `More like ${name}`, title: "More like this (m)",
    onclick: () => moreLike(match.id),
  }, icon("like"));
  return el("li", {}, link, like);
}

export function thumbnail({ id }, lazy = false) {
  const frame = el("span", { class: "frame" });
  const picture = el("img", { width: EDGE, height: EDGE, alt: "", decoding: "async", loading: lazy ? "lazy" : null });
  picture.addEventListener("error", () => picture.replaceWith(el("span", { class: "no-picture" }, "no picture")));
  fill(picture, api.thumbnail(state.collection, id, state.namespace), { lazy });
  frame.append(picture);
  return frame;
}

/** One tile of the list takes part in Tab; arrows, Home and End move on from there. */
export function withKeys(list, { up } = {}) {
  list.addEventListener("keydown", (event) => {
    const link = event.target.closest("a.tile");
    if (!link || event.metaKey || event.ctrlKey || event.altKey) return;
    const links = [...list.querySelectorAll("a.tile")];
    const next = target(event.key, links, links.indexOf(link));
    if (next === "above") up?.();
    else if (next) focus(links, next);
    else if (!act(event.key, link.dataset.id)) return;
    event.preventDefault();
  });
  list.addEventListener("focusin", ({ target: { classList }, target: link }) => {
    if (!classList.contains("tile")) return;
    for (const other of list.querySelectorAll('a.tile[tabindex="0"]')) other.tabIndex = -1;
    link.tabIndex = 0;
  });
}

function target(key, links, at) {
  const columns = columnsOf(links);
  const last = links.length - 1;
  switch (key) {
    case "ArrowRight": return links[Math.min(last, at + 1)];
    case "ArrowLeft": return links[Math.max(0, at - 1)];
    case "ArrowDown": return links[at + columns] ?? links[last];
    case "ArrowUp": return links[at - columns] ?? "above";
    case "Home": return links[0];
    case "End": return links[last];
    default: return null;
  }
}

function columnsOf(links) {
  const top = (link) => link.parentElement.offsetTop;
  const wrapped = links.findIndex((link) => top(link) !== top(links[0]));
  return wrapped < 0 ? links.length : wrapped;
}

function focus(links, link) {
  link.focus();
  link.scrollIntoView({ block: "nearest" });
}

function act(key, id) {
  if (key === "m") moreLike(id);
  else if (key === "+") addTerm({ kind: "id", value: id });
  else if (key === "-") addTerm({ kind: "id", value: id, weight: -1 });
  else return false;
  return true;
}
