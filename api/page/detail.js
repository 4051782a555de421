// One image: its picture, what is known of it, and its neighbours.

import * as api from "./api.js";
import { current } from "./collections.js";
import { $, button, bytes, el, icon, nameOf, when } from "./dom.js";
import { filePart, pictureOf, showLarger } from "./original.js";
import { focusOn, forget, ids } from "./results.js";
import { go, state } from "./state.js";
import { addTerm, avoid, moreLike } from "./terms.js";
import { tile, withKeys } from "./tiles.js";

const NEIGHBOURS = 12;

const dialog = $("detail");

let shown = "";
let looked = ""; // the id of the image that is shown
let asking = new AbortController();

export function render() {
  const wanted = state.image && current() ? JSON.stringify([state.collection, state.namespace, state.image]) : "";
  if (wanted === shown) return;
  asking.abort();
  shown = wanted;
  const last = looked;
  looked = state.image;
  if (!wanted) {
    dialog.close();
    focusOn(last);
    return;
  }
  show(state.image);
  if (!dialog.open) dialog.showModal();
  $("detail-title").focus();
}

function show(id) {
  asking = new AbortController();
  const known = el("dl", { class: "known" });
  const file = el("div", { class: "file" });
  const neighbours = el("ol", { class: "grid near", "aria-label": "Neighbours" });
  withKeys(neighbours);
  const parts = { picture: el("div", { class: "picture" }, pictureOf(id)), known, file, neighbours, search: actions(id), below: el("section", {}, el("h3", {}, "Neighbours"), neighbours) };
  dialog.replaceChildren(
    head(id),
    el("div", { class: "body" },
      parts.picture,
      el("div", { class: "facts" }, parts.search, file, known)),
    parts.below);
  dialog.scrollTop = 0;
  fill(parts, id, asking.signal);
}

async function fill({ picture, known, file, neighbours, search, below }, id, signal) {
  try {
    const image = await api.image(state.collection, id, state.namespace, signal);
    known.replaceChildren(...facts(image));
    filePart(file, image, { signal, removed });
    showLarger(picture, image, signal);
    const body = { id, top_k: NEIGHBOURS + 1, namespace: state.namespace, include_size: true };
    const { matches } = await api.search(state.collection, body, signal);
    const others = matches.filter((match) => match.id !== id).slice(0, NEIGHBOURS);
    neighbours.replaceChildren(...others.map((match, place) => tile(match, { lazy: false, focusable: !place })));
    if (!others.length) neighbours.after(el("p", { class: "muted" }, "It is the only image here."));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 404 && !known.childElementCount) { // nothing that could be done with it would work
      for (const part of [search, file, below, picture]) part.remove();
      known.replaceWith(el("p", {}, `This image is not in the collection ${state.collection}. It may have been removed, or be in another namespace.`));
    } else (known.childElementCount ? neighbours : known).after(el("p", { class: "wrong" }, error.message));
  }
}

/** It was removed: the next one is shown, or the one before, or the images. */
function removed(id) {
  const all = ids();
  const at = all.indexOf(id);
  const next = all[at + 1] ?? all[at - 1];
  forget([id]);
  if (at >= 0 && next) go({ image: next }, { replace: true });
  else close();
}

function head(id) {
  const all = ids();
  const at = all.indexOf(id);
  return el("header", { class: "dialog-head" },
    el("h2", { id: "detail-title", tabindex: -1, title: id }, nameOf(id)),
    at < 0 ? null : step("back", "Image before (←)", all[at - 1]),
    at < 0 ? null : step("next", "Image after (→)", all[at + 1]),
    el("button", { type: "button", class: "plain close", "aria-label": "Close", onclick: close }, icon("close")));
}

function step(name, title, id) {
  const attributes = { type: "button", class: "plain", "data-step": name, "aria-label": title, title, disabled: !id };
  return el("button", { ...attributes, onclick: () => go({ image: id }, { replace: true }) }, icon(name));
}

function actions(id) {
  const term = { kind: "id", value: id };
  return el("p", { class: "actions" },
    button("More like this", () => moreLike(id), { class: "button main" }),
    button("Add to the search", () => addTerm(term)),
    button("Not like this", () => avoid(term)));
}

function facts(image) {
  const rows = [];
  const row = (name, value) => rows.push(el("dt", {}, name), el("dd", {}, value));
  row("id", image.id);
  if (image.label) row("label", labelFilter(image.label));
  if (image.uri !== image.id) row("from", source(image.uri));
  if (image.width) row("size", `${image.width} × ${image.height}${image.bytes ? `, ${bytes(image.bytes)}` : ""}`);
  row("indexed", when(image.indexed_at / 1000));
  for (const [name, value] of Object.entries(image.metadata)) row(name, typeof value === "string" ? value : JSON.stringify(value));
  return rows;
}

function labelFilter(label) {
  const condition = { field: "label", op: "eq", value: label };
  return button(label, () => go({ image: "", where: [condition] }), { class: "button link", title: "Only images of this label" });
}

/** A link, where it leads to the web; other schemes (javascript:, file:) stay words. */
function source(uri) {
  if (!/^https?:\/\//i.test(uri)) return uri;
  return el("a", { href: uri, target: "_blank", rel: "noopener noreferrer" }, uri);
}

/** Back to what was there before, so that the Back button does not open the image again. */
function close() {
  if (history.state?.over) history.back();
  else go({ image: "" }, { replace: true });
}

dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  close();
});
dialog.addEventListener("click", (event) => event.target === dialog && close());
dialog.addEventListener("keydown", (event) => {
  const name = { ArrowLeft: "back", ArrowRight: "next" }[event.key];
  if (!name || event.target.closest(".near") || event.target.matches("input, select")) return;
  event.preventDefault();
  dialog.querySelector(`[data-step="${name}"]`)?.click();
});
