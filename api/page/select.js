// Many images at once: which ones are selected, and what can be done with them.
//
// The boxes are added to the tiles from outside, when tiles appear in the grid.

import { may } from "./access.js";
import * as api from "./api.js";
import { ask } from "./ask.js";
import { $, announce, button, count, el, icon, many, nameOf } from "./dom.js";
import { saveRows } from "./export.js";
import { forget, ids, notify } from "./results.js";
import { onChange, state } from "./state.js";
import { saveZip } from "./zip.js";

const MOST_NAMED = 200;

const grid = $("grid");
const bar = $("selection");

const selected = new Set();
let anchor = ""; // the image that a range begins at
let of = ""; // the query whose images these are
let working = null; // aborts what is under way

const listeners = [];
const removals = [];

/** `listener(ids)`: these are selected now. */
export const onSelect = (listener) => listeners.push(listener);

/** `listener(ids)`: these were removed. */
export const onRemoved = (listener) => removals.push(listener);

const active = () => selected.size > 0;

/** Another query has other images. */
onChange(() => {
  const query = JSON.stringify({ ...state, image: "", view: "" });
  if (query === of) return;
  of = query;
  clear();
});

export function clear() {
  working?.abort();
  selected.clear();
  anchor = "";
  render();
}

/** Select these images, which need not be among the tiles. `more`: and keep those that are selected. */
export function choose(chosen, { more = false } = {}) {
  if (!more) selected.clear();
  for (const id of chosen) select(id);
  render();
}

export { inOrder as all };

function select(id, on = true) {
  if (on) selected.add(id);
  else selected.delete(id);
}

/** `range`: with all images since the one that was chosen last. */
function chooseOne(id, { range = false } = {}) {
  const all = ids();
  const from = all.indexOf(anchor);
  const to = all.indexOf(id);
  if (range && from >= 0 && to >= 0) for (const one of all.slice(Math.min(from, to), Math.max(from, to) + 1)) select(one);
  else select(id, !selected.has(id));
  anchor = id;
  render();
}

function chooseAll() {
  for (const id of ids()) select(id);
  render();
}

// Boxes

function box(id) {
  return el("button", {
    type: "button", class: "pick-box", role: "checkbox", tabindex: -1, "aria-label": `Select ${nameOf(id)}`, title: "Select (x); with Shift up to here",
  }, icon("check"));
}

function mark(item) {
  const id = item.querySelector("a.tile")?.dataset.id;
  if (id === undefined) return;
  let check = item.querySelector(".pick-box");
  if (!check) item.append(check = box(id));
  check.setAttribute("aria-checked", String(selected.has(id)));
  item.classList.toggle("selected", selected.has(id));
}

const markAll = () => [...grid.children].forEach(mark);

new MutationObserver((changes) => {
  for (const { addedNodes } of changes) for (const node of addedNodes) if (node.nodeType === Node.ELEMENT_NODE) mark(node);
}).observe(grid, { childList: true });

/** Before the tile itself hears of it: while images are selected, a click selects. */
grid.addEventListener("click", (event) => {
  const item = event.target.closest("#grid > li");
  const id = item?.querySelector("a.tile")?.dataset.id;
  if (id === undefined || event.target.closest(".like")) return;
  const onBox = event.target.closest(".pick-box");
  if (!onBox && (event.metaKey || event.ctrlKey)) return; // a new tab, as links do
  if (!onBox && !active()) return;
  event.preventDefault();
  event.stopPropagation();
  chooseOne(id, { range: event.shiftKey });
  item.querySelector("a.tile").focus({ preventScroll: true });
}, true);

document.addEventListener("keydown", (event) => {
  if (state.view !== "search" || document.querySelector("dialog[open]") || event.target.closest("input, select, textarea")) return;
  const id = event.target.closest("#grid a.tile")?.dataset.id;
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "a" && ids().length) chooseAll();
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.key.toLowerCase() === "x" && id !== undefined) chooseOne(id, { range: event.shiftKey });
  else if (event.key === "Escape" && active()) clear();
  else if (event.key === "Delete" && active() && may("write") && !working) remove();
  else return;
  event.preventDefault();
  event.stopImmediatePropagation();
}, true);

// The bar

const text = el("p", { class: "said", role: "status" });
const progress = el("progress", { "aria-label": "Progress", max: 1, value: 0, hidden: true });
const allShown = button("Select all shown", chooseAll, { class: "button quiet" });
const download = button("Download", saveAll);
const rows = button("Export", exportRows);
const trash = button("Remove", remove, { class: "button needs-write" });
const stop = button("Stop", () => working?.abort());
const close = el("button", { type: "button", class: "plain", "aria-label": "Select nothing", title: "Select nothing (Esc)", onclick: clear }, icon("close"));
bar.append(text, allShown, el("span", { class: "actions" }, download, rows, trash, stop), close, progress);

function render() {
  bar.hidden = !active();
  grid.classList.toggle("selecting", active());
  document.documentElement.classList.toggle("selecting", active());
  if (!working) text.textContent = `${count(selected.size)} selected`;
  allShown.hidden = Boolean(working) || state.view !== "search" || selected.size >= ids().length;
  for (const one of [download, rows, trash]) one.hidden = Boolean(working);
  stop.hidden = progress.hidden = !working;
  markAll();
  for (const listener of listeners) listener([...selected]);
}

/** Do something that takes a while with the selected images, in the order in which they are shown. */
async function work(what) {
  const chosen = inOrder();
  const mine = working = new AbortController();
  progress.removeAttribute("value");
  render();
  try {
    await what(chosen, mine.signal);
  } catch (error) {
    if (error.name !== "AbortError") notify(error.message, { wrong: true });
  }
  if (working === mine) working = null;
  render();
}

function inOrder() {
  return [...new Set([...ids().filter((id) => selected.has(id)), ...selected])];
}

const stem = (chosen) => `${state.collection}-${chosen.length}-images`;

function saveAll() {
  return work(async (chosen, signal) => {
    text.textContent = `Fetching ${many(chosen.length, "image")}…`;
    const told = (done) => {
      progress.value = done / chosen.length;
      text.textContent = `Fetched ${count(done)} of ${count(chosen.length)}`;
    };
    const { saved, zips, left } = await saveZip(chosen, stem(chosen), { progress: told, signal });
    const where = zips > 1 ? `${count(zips)} zips` : "the zip";
    const summary = saved ? `${many(saved, "image")} in ${where}` : "No image could be fetched";
    announce(summary);
    if (left.length) await sayWhatIsLeft(summary, left);
  });
}

function sayWhatIsLeft(summary, left) {
  const named = left.slice(0, MOST_NAMED).map(({ id, reason }) => el("li", {}, el("b", {}, id), ` ${reason}`));
  if (left.length > MOST_NAMED) named.push(el("li", {}, `and ${count(left.length - MOST_NAMED)} more`));
  const details = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Left out" }, el("ul", { class: "left-out" }, ...named));
  return ask({ title: summary, text: `${many(left.length, "image")} left out:`, details });
}

async function exportRows() {
  const kind = await ask({
    title: `Export ${many(selected.size, "image")}`,
    text: "Ids, sources, labels and metadata, as clipfleet index reads them. The images themselves are not in the file.",
    choices: [["jsonl", "JSON lines"], ["csv", "CSV"]],
  });
  if (!kind) return;
  await work(async (chosen) => {
    text.textContent = `Reading ${many(chosen.length, "image")}…`;
    announce(`${many(await saveRows(chosen, kind, stem(chosen)), "image")} exported`);
  });
}

async function remove() {
  const number = many(selected.size, "image");
  const sure = await ask({
    title: `Remove ${number}?`,
    text: `They go out of the collection ${state.collection}, with their metadata and thumbnails. The files that they came from stay where they are.`,
    yes: `Remove ${number}`,
  });
  if (!sure) return;
  await work(async (chosen) => {
    text.textContent = `Removing ${number}…`;
    const removed = await api.deleteImages(state.collection, chosen, state.namespace);
    selected.clear();
    forget(chosen);
    for (const listener of removals) listener(chosen);
    grid.querySelector('a[tabindex="0"]')?.focus({ preventScroll: true });
    announce(`${many(removed, "image")} removed`);
  });
}
