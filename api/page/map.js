// The map of a collection: each image is a point, near ones beside each other.

import { may } from "./access.js";
import * as api from "./api.js";
import * as collections from "./collections.js";
import { $, announce, button, count, el, many, message, nameOf, sentence, when } from "./dom.js";
import { fill } from "./pictures.js";
import { scatter } from "./scatter.js";
import * as selection from "./select.js";
import { go, href, state } from "./state.js";

const MOST_POINTS = 100_000; // of more images these are shown: keys are hashes, so any are as good as others
const MOST_COLOURS = 12;
const MOST_LISTED = 100;
const MOST_FILTERED = 100; // images in an address
const ASK_EVERY_MS = 1_000; // while a job makes the map
const PALETTE = ["#4c78d8", "#e0803a", "#3d9a58", "#c9475a", "#8c62c9", "#a0795c", "#d86bb0", "#8a9a2f", "#2fa3b5", "#d6a51f", "#5b6bbf", "#7f9f7a"];
const REST = "#8f8f95";

const canvas = $("map-canvas");
let shown = { key: "", about: null, ids: [], places: new Map() };
let asking = new AbortController();
let timer = 0;
let field = "";
let lassoing = false;

const plot = scatter(canvas, {
  open: (n) => go({ image: shown.ids[n] }, { over: true }),
  hover: showName,
  select: (places, more) => choose(places, { more, from: "lasso" }),
  picture(n) {
    const image = new Image();
    fill(image, api.thumbnail(state.collection, shown.ids[n], state.namespace));
    return image;
  },
});

/** Milliseconds of each frame from now on, for benchmarks/page_map.py. */
export const measure = plot.measure;

export function render() {
  if (state.view !== "map") return clearTimeout(timer);
  const key = JSON.stringify([state.collection, state.namespace, collections.current()?.created_at]);
  if (key !== shown.key) look(key);
  return null;
}

/** The view is opened: there may be a new map. */
export const open = () => look(JSON.stringify([state.collection, state.namespace, collections.current()?.created_at]));

async function look(key) {
  clearTimeout(timer);
  if (key !== shown.key) {
    asking.abort();
    asking = new AbortController();
    shown = { key, about: null, ids: [], places: new Map() };
    selection.clear();
    $("map-body").hidden = true;
  }
  if (!collections.current()) return say(message("No such collection", "Choose a collection above."));
  const { signal } = asking;
  try {
    const about = await api.mapOf(state.collection, state.namespace, signal);
    if (key !== shown.key) return null;
    if (about.map_id && about.map_id !== shown.about?.map_id) await load(about, signal);
    if (key !== shown.key) return null;
    shown.about = { ...about };
    tell(about);
    if (about.job && state.view === "map") timer = setTimeout(() => look(key), ASK_EVERY_MS);
  } catch (error) {
    if (error.name !== "AbortError") say(message("The map cannot be shown", sentence(error.message), button("Ask again", () => look(key))));
  }
  return null;
}

function say(...what) {
  $("map-more").replaceChildren(...what);
}

/** All pages of one map, with the values of every field. */
async function load(about, signal) {
  const fields = Object.keys(about.fields);
  field = fields.includes(field) ? field : fields.find((name) => about.fields[name].values.length > 1) ?? fields[0] ?? "";
  const total = Math.min(MOST_POINTS, about.points);
  const [x, y, ids] = [new Float32Array(total), new Float32Array(total), []];
  let codes = [];
  for (let page = 0; page !== null && ids.length < total;) {
    const some = await api.mapPoints(state.collection, { namespace: state.namespace, page, field }, signal);
    if (some.map_id !== about.map_id) throw new api.Problem("The map was replaced meanwhile.");
    some.ids.slice(0, total - ids.length).forEach((id, n) => {
      [x[ids.length], y[ids.length]] = [some.x[n], some.y[n]];
      ids.push(id);
    });
    codes = codes.concat(some.codes);
    page = some.next;
  }
  selection.clear();
  Object.assign(shown, { ids, about, places: new Map(ids.map((id, n) => [id, n])) });
  $("map-body").hidden = false;
  plot.show({ x, y, count: ids.length });
  paint(about, codes.slice(0, ids.length));
}

async function paintBy(name) {
  field = name;
  const codes = [];
  const { about } = shown;
  for (let page = 0; page !== null && codes.length < shown.ids.length;) {
    const some = await api.mapPoints(state.collection, { namespace: state.namespace, page, field }, asking.signal);
    if (some.map_id !== about.map_id) return look(shown.key);
    codes.push(...some.codes);
    page = some.next;
  }
  return paint(about, codes);
}

/** Groups: the values that have colours, and all others. */
function paint(about, codes) {
  const colours = about.fields[field];
  const values = (colours?.values ?? []).slice(0, MOST_COLOURS);
  shown.groups = Int16Array.from(codes.length ? codes : shown.ids, (code) => (code >= 0 && code < values.length ? code : values.length));
  plot.colour(shown.groups, [...values.map((_, n) => PALETTE[n]), REST]);
  const names = Object.keys(about.fields);
  $("map-field").replaceChildren(...names.map((name) => el("option", { value: name, selected: name === field }, name)));
  $("map-legend").replaceChildren(...[...values, null].map((value, group) => entry(value, group, group < values.length ? PALETTE[group] : REST)).filter(Boolean));
  summarise(values);
}

function entry(value, group, colour) {
  const number = shown.groups.reduce((sum, one) => sum + (one === group), 0);
  if (!number) return null;
  const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
  swatch.style.background = colour;
  const words = value === null ? "other or none" : String(value);
  return el("li", {}, el("button", {
    type: "button", class: "legend-entry", title: `Select these ${count(number)}`,
    onclick: () => choose(shown.ids.flatMap((_, n) => (shown.groups[n] === group ? [n] : [])), { from: words }),
  }, swatch, el("span", { class: "legend-name" }, words), el("span", { class: "muted number" }, count(number))));
}

function summarise(values) {
  const top = values.slice(0, 5).map((value, n) => `${value}: ${count(shown.groups.reduce((sum, one) => sum + (one === n), 0))}`);
  const text = `Map of ${many(shown.ids.length, "image")}${top.length ? ` by ${field}; ${top.join(", ")}` : ""}.`;
  canvas.setAttribute("aria-label", `${text} Arrows move it, plus and minus enlarge it, 0 shows all. The legend selects images by their value.`);
  $("map-summary").textContent = text;
}

function tell(about) {
  const make = button(about.map_id ? "Make it again" : "Make the map", makeMap, { class: about.map_id ? "button quiet needs-write" : "button main needs-write" });
  if (!about.map_id) {
    $("map-body").hidden = true;
    if (about.job) say(message("The map is being made", progress(about.job)));
    else if (!collections.current()?.count) say(message("Nothing to map yet", "Images are on the map when they are in the collection."));
    else say(message("No map yet", "A map shows each image as a point, near ones beside each other. A job computes it from what is stored.", ...(may("write") ? [make] : [])));
    return;
  }
  const parts = [`${many(about.points, "image")} by ${about.method === "pca" ? "principal components" : "PaCMAP"}, ${when(about.made_at)}`];
  if (about.points > MOST_POINTS) parts.push(`${count(MOST_POINTS)} of them are shown, chosen at random`);
  if (about.not_on_map) parts.push(`${many(about.not_on_map, "image")} not on the map yet`);
  if (about.job) parts.push(progress(about.job));
  $("map-about").replaceChildren(parts.join(" · "), " ", ...(about.job ? [] : [make]));
  say();
}

const progress = (job) => (job.total ? `${count(job.done)} of ${many(job.total, "image")} read` : "it is about to begin");

async function makeMap() {
  try {
    await api.makeMap(state.collection, { namespace: state.namespace });
    announce("The map is being made");
    await look(shown.key);
  } catch (error) {
    say(el("p", { class: "wrong" }, sentence(error.message)));
  }
}

// Names and the selection

function showName(n, x, y) {
  const tip = $("map-tip");
  tip.hidden = n === undefined || n < 0;
  canvas.classList.toggle("on-point", !tip.hidden);
  if (tip.hidden) return;
  const values = shown.about.fields[field]?.values ?? [];
  const value = values[shown.groups[n]];
  tip.textContent = value === undefined || shown.groups[n] >= MOST_COLOURS ? nameOf(shown.ids[n]) : `${nameOf(shown.ids[n])} · ${value}`;
  tip.style.transform = `translate(${Math.round(x + 14)}px, ${Math.round(y + 10)}px)`;
}

function choose(places, { more = false, from = "" } = {}) {
  selection.choose(places.map((n) => shown.ids[n]), { more });
  announce(`${many(places.length, "image")} selected${from && from !== "lasso" ? `: ${from}` : ""}`);
}

/** What is selected, also by the bar, or by what was removed. */
function selected(ids) {
  if (state.view !== "map") return;
  const mine = ids.filter((id) => shown.places.has(id));
  plot.choose(mine.map((id) => shown.places.get(id)));
  $("map-selected").hidden = !mine.length;
  $("map-selected-title").textContent = `${many(mine.length, "image")} selected`;
  $("map-selected-list").replaceChildren(...mine.slice(0, MOST_LISTED).map((id) => el("li", {}, el("a", {
    href: href({ image: id }), onclick: (event) => {
      event.preventDefault();
      go({ image: id }, { over: true });
    },
  }, nameOf(id)))), ...(mine.length > MOST_LISTED ? [el("li", { class: "muted" }, `and ${count(mine.length - MOST_LISTED)} more`)] : []));
  const few = mine.length <= MOST_FILTERED;
  $("map-filter").disabled = !few;
  $("map-filter").title = few ? "" : `A filter takes at most ${MOST_FILTERED} images`;
}

selection.onSelect(selected);
selection.onRemoved((ids) => plot.hide(ids.filter((id) => shown.places.has(id)).map((id) => shown.places.get(id))));

$("map-filter").addEventListener("click", () => {
  const where = selection.all().map((id) => ({ field: "id", op: "eq", value: id }));
  go({ view: "search", where, text: "", terms: [], image: "" });
});
$("map-label").addEventListener("submit", async (event) => {
  event.preventDefault();
  const ids = selection.all();
  const label = $("map-label-text").value.trim();
  $("map-label-button").disabled = true;
  try {
    const { updated } = await api.label(state.collection, ids, label, state.namespace);
    $("map-said").textContent = label ? `${many(updated, "image")} now labelled ${label}; the colours change with the next map.` : `${many(updated, "image")} without a label now.`;
  } catch (error) {
    $("map-said").textContent = sentence(error.message);
  }
  $("map-label-button").disabled = false;
});
$("map-field").addEventListener("change", ({ target }) => paintBy(target.value).catch((error) => error.name === "AbortError" || say(el("p", { class: "wrong" }, sentence(error.message)))));
$("map-lasso").addEventListener("click", () => {
  lassoing = !lassoing;
  plot.lasso(lassoing);
  canvas.classList.toggle("lasso", lassoing);
  $("map-lasso").setAttribute("aria-pressed", String(lassoing));
});
$("map-closer").addEventListener("click", () => plot.zoom(1.6));
$("map-farther").addEventListener("click", () => plot.zoom(1 / 1.6));
$("map-whole").addEventListener("click", () => plot.whole());
