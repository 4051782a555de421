// The grid: asks, shows what came, asks for more while one scrolls, and says what is wrong.

import * as api from "./api.js";
import * as collections from "./collections.js";
import { $, announce, button, count, el, icon, many, message, seconds } from "./dom.js";
import * as key from "./key.js";
import { asksNothing, isMissing, searchBody } from "./query.js";
import { changed, go, state } from "./state.js";
import { tile, withKeys } from "./tiles.js";

const PAGE = 60;
const WINDOW = 10_000; // the service looks no further
const LONGEST_WAIT_S = 15;

const grid = $("grid");
const more = $("more");

let shown = { key: "", ids: new Set(), body: null, done: true };
let asking = new AbortController();
let waiting = 0;
let waited = 0;

export const ids = () => [...shown.ids];

/** Ask anew if what the page shows is another query now. */
export function render() {
  if (!collections.all()) return;
  const collection = collections.current();
  const body = collection ? searchBody(state, collection) : null;
  const key = JSON.stringify([state.collection, collection?.created_at, body]);
  if (key === shown.key) return;
  shown = { key, ids: new Set(), body, done: false };
  closeNotice();
  sayWhatIsMissing();
  start();
}

/** Ask the same again: something was added, or the service is back. */
export async function refresh() {
  shown.key = "";
  await collections.load().then(changed, fail);
}

/** These images are not in the collection any more. */
export function forget(gone) {
  for (const id of gone) {
    shown.ids.delete(id);
    grid.querySelector(`a.tile[data-id="${CSS.escape(id)}"]`)?.closest("li").remove();
  }
  const first = grid.querySelector("a.tile");
  if (first && !grid.querySelector('a.tile[tabindex="0"]')) first.tabIndex = 0;
  if (!shown.ids.size) return refresh();
  return collections.load().then(sayHowMany, () => {});
}

function sayHowMany() {
  if (asksNothing(state) && !state.where.length) $("summary").textContent = many(collections.current().count, "image");
  if (shown.done) more.replaceChildren(...end());
}

function start() {
  asking.abort();
  clearTimeout(waiting);
  observer.disconnect(); // or scrolling asks for the first page, too
  asking = new AbortController();
  if (!shown.body) return showWithoutCollection();
  grid.setAttribute("aria-busy", "true");
  if (!grid.querySelector("a")) {
    grid.replaceChildren(...Array.from({ length: 24 }, () => el("li", { class: "skeleton", "aria-hidden": "true" })));
  }
  more.replaceChildren();
  return nextPage();
}

async function nextPage() {
  const { signal } = asking;
  const mine = shown;
  const first = mine.ids.size === 0;
  const offset = mine.ids.size;
  try {
    const answer = await api.search(state.collection, { ...mine.body, top_k: Math.min(PAGE, WINDOW - offset), offset }, signal);
    if (mine !== shown) return;
    waited = 0;
    show(answer, first);
  } catch (error) {
    if (error.name !== "AbortError" && mine === shown) fail(error);
  }
}

function show({ matches, took_ms, timing, truncated }, first) {
  const scored = !asksNothing(state);
  const fresh = matches.filter(({ id }) => !shown.ids.has(id));
  const tiles = fresh.map((match, place) => tile(match, { scored, lazy: !first || place > 23, focusable: first && place === 0 }));
  for (const { id, label } of fresh) {
    shown.ids.add(id);
    if (label) suggest(label);
  }
  if (first) grid.replaceChildren(...tiles);
  else grid.append(...tiles);
  grid.removeAttribute("aria-busy");
  const cut = truncated === "answer_bytes"; // the next page goes on where this one ends
  shown.done = (matches.length < PAGE && !cut) || !fresh.length || shown.ids.size >= WINDOW;
  shown.truncated = shown.done ? truncated : null;
  if (first) summarise(matches, took_ms, timing, scored);
  more.replaceChildren(...(shown.done ? end() : [el("span", { class: "spinner" })]));
  watch();
}

function summarise(matches, took, timing, scored) {
  $("summary").title = scored ? timing.map(([stage, ms]) => `${stage} ${ms.toFixed(1)} ms`).join(" · ") : "";
  const all = collections.current().count;
  const narrowed = state.where.length > 0 || state.namespace !== "default";
  const said = scored && matches.length ? [`nearest first · ${Math.max(1, Math.round(took))} ms`] : [];
  const say = (...first) => {
    $("summary").textContent = [...first, ...said].join(" · ");
  };
  if (narrowed) sayHowManyPass(say, all);
  say(...(scored || narrowed ? [] : [many(all, "image")]));
  announce(matches.length ? (scored ? "Images found, nearest first" : "Images of the collection") : "No images found");
}

async function sayHowManyPass(say, all) {
  const mine = shown;
  const { filter, namespace } = mine.body;
  const passing = await api.countImages(state.collection, { filter, namespace }, asking.signal).catch(() => null);
  if (mine === shown && passing !== null) say(`${count(passing)} of ${many(all, "image")}`);
}

function end() {
  if (!shown.ids.size) return [nothing()];
  if (shown.ids.size >= WINDOW) return [`The first ${count(WINDOW)}. Filters narrow the search.`];
  if (shown.truncated) return [`The service shows no more than ${many(shown.ids.size, "image")} (limit: ${shown.truncated}). There may be more; filters narrow the search.`];
  return shown.ids.size > 24 ? [`All ${many(shown.ids.size, "image")}`] : [];
}

function nothing() {
  if (state.where.length) {
    return message("Nothing passes the filters", "No image here fulfils all of them.",
      button("Remove the filters", () => go({ where: [] })));
  }
  if (state.namespace !== "default") {
    return message("Nothing here", `There are no images in the namespace ${state.namespace}.`,
      button("To the default namespace", () => go({ namespace: "default" })));
  }
  return message(`${state.collection} is empty`, "Drop images or a folder anywhere on this page. What goes in can be searched at once.",
    button("Add images", () => $("add").click(), { class: "button main" }));
}

function showWithoutCollection() {
  grid.replaceChildren();
  grid.removeAttribute("aria-busy");
  $("summary").textContent = "";
  shown.done = true;
  if (!collections.all().length) {
    more.replaceChildren(message("No collection yet", "Drop images or a folder anywhere on this page, or run clipfleet index FOLDER.",
      button("Add images", () => $("add").click(), { class: "button main" })));
  } else {
    more.replaceChildren(message("No such collection", `There is no collection ${state.collection} here. Choose another one above.`));
  }
}

/** A passing trouble is tried again by itself; the rest is for the user to change. */
export function fail(error) {
  if (error.name === "AbortError") return;
  grid.removeAttribute("aria-busy");
  if (!shown.ids.size) grid.replaceChildren();
  $("summary").textContent = "";
  announce(error.message);
  const again = () => {
    clearTimeout(waiting);
    refresh();
  };
  if (error.wantsKey) {
    more.replaceChildren(message("An API key is needed", error.message, button("Enter the key", () => {
      key.askAgain();
      again();
    })));
    return;
  }
  if (!error.passing) {
    more.replaceChildren(message("This cannot be searched for", error.message));
    return;
  }
  waited = Math.min(LONGEST_WAIT_S, error.retryAfter || (waited || 1) * 2);
  more.replaceChildren(message(error.status ? "The service is not ready" : "The service is away",
    `${error.message} This page asks again in ${seconds(waited)}.`, button("Ask now", again)));
  waiting = setTimeout(again, waited * 1000);
}

function sayWhatIsMissing() {
  const missing = state.terms.filter(isMissing).map((term) => term.value);
  if (missing.length) notify(`A link cannot carry an image. Drop ${missing.join(", ")} here again to search by it.`);
}

export function notify(text, ...actions) {
  const close = el("button", { type: "button", class: "plain", "aria-label": "Close this message", onclick: closeNotice }, icon("close"));
  $("notice").replaceChildren(el("span", {}, text), ...actions, close);
  $("notice").hidden = false;
}

const closeNotice = () => {
  $("notice").hidden = true;
};

function suggest(label) {
  const options = $("labels");
  if (options.childElementCount < 500 && ![...options.children].some((one) => one.value === label)) {
    options.append(el("option", { value: label }));
  }
}

const observer = new IntersectionObserver((seen) => {
  if (seen.some((one) => one.isIntersecting) && !shown.done) {
    observer.disconnect();
    nextPage();
  }
}, { rootMargin: "900px" });

function watch() {
  observer.disconnect();
  if (!shown.done) observer.observe(more);
}

withKeys(grid, { up: () => $("words").focus() });
