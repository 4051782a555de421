// The grid: asks, shows what came, asks for more while one scrolls, and says what is wrong.

import * as access from "./access.js";
import * as api from "./api.js";
import * as collections from "./collections.js";
import { $, announce, button, count, el, icon, many, message, seconds, sentence } from "./dom.js";
import * as fields from "./fields.js";
import * as jobs from "./jobs.js";
import * as key from "./key.js";
import { anyDirection, asksNothing, isMissing, isSorted, orderOf, searchBody } from "./query.js";
import { changed, go, href, state } from "./state.js";
import { focus, tile, withKeys } from "./tiles.js";
import * as view from "./view.js";

const PAGE = 60;
const WINDOW = 10_000; // the service looks no further
const SIFTED = 2_000; // nor, with groups or without near-duplicates, further than this
const IDS = 600; // that are asked for at once, after the first page
const LONGEST_WAIT_S = 15;
const MOST_KEPT = 6;

const grid = $("grid");
const more = $("more");

let shown = fresh("", null);
let latest = ""; // the last query that was shown, also while it is asked again
let left = 0; // how far the page was scrolled when another view was opened
let asking = new AbortController();
let waiting = 0;
let waited = 0;

const kept = new Map(); // by query: what it has shown, for the way back
const embedded = new Map(); // by model and address: the embedding of an image of the web

function fresh(key, body) {
  const listed = body && asksNothing(state) && !state.group && !state.collapse && (state.sort || !body.filter);
  return { key, body, ids: new Set(), matches: [], order: listed ? [] : null, cursor: "", asked: 0, done: false, truncated: null, said: null, scroll: 0 };
}

export const ids = () => [...shown.ids];

/** Show another query, if it is one. One that the user comes back to is shown as it was left. */
export function render({ back = false } = {}) {
  if (!collections.all()) return;
  const collection = collections.current();
  const body = collection ? searchBody(state, collection) : null;
  const name = JSON.stringify([state.collection, collection?.created_at, body, isSorted(state) ? state.sort : ""]);
  if (name === shown.key) return;
  shown.scroll = scrollY;
  if (shown.key && shown.matches.length) keep(shown);
  const known = back ? kept.get(name) : null;
  const another = name !== latest;
  latest = name;
  closeNotice();
  sayWhatIsMissing();
  if (known) return restore(known);
  shown = fresh(name, body);
  if (another) scrollTo(0, 0);
  start();
}

function keep(query) {
  kept.delete(query.key);
  kept.set(query.key, query);
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
}

function restore(known) {
  stopAsking();
  shown = known;
  grid.replaceChildren(...known.matches.map((match, place) => tile(match, { scored: known.said.scored, focusable: place === 0 })));
  grid.removeAttribute("aria-busy");
  summarise(known.said);
  more.replaceChildren(...(known.done ? end() : [el("span", { class: "spinner" })]));
  scrollTo(0, known.scroll);
  watch();
}

/** Another view is opened, or this one again: it stays where it was. */
export function leave() {
  left = scrollY;
}

export const comeBack = () => scrollTo(0, left);

/** Ask the same again: something was added, or the service is back. */
export async function refresh() {
  kept.clear();
  shown.key = "";
  await collections.load().then(changed, fail);
  access.load();
}

/** These images are not in the collection any more. */
export function forget(gone) {
  kept.clear();
  for (const id of gone) {
    shown.ids.delete(id);
    grid.querySelector(`a.tile[data-id="${CSS.escape(id)}"]`)?.closest("li").remove();
  }
  shown.matches = shown.matches.filter(({ id }) => shown.ids.has(id));
  const first = grid.querySelector("a.tile");
  if (first && !grid.querySelector('a.tile[tabindex="0"]')) first.tabIndex = 0;
  if (!shown.ids.size) return refresh();
  return collections.load().then(sayHowMany, () => {});
}

function sayHowMany() {
  summarise(shown.said);
  if (shown.done) more.replaceChildren(...end());
}

function stopAsking() {
  asking.abort();
  clearTimeout(waiting);
  observer.disconnect(); // or scrolling asks for the first page, too
  asking = new AbortController();
}

function start() {
  stopAsking();
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
  const first = mine.asked === 0;
  try {
    const answer = await (mine.order ? nextOfIds(mine, signal) : nextNearest(mine, signal));
    if (mine !== shown) return;
    waited = 0;
    show(answer, first);
  } catch (error) {
    if (error.name !== "AbortError" && mine === shown) fail(error);
  }
}

async function nextNearest(mine, signal) {
  const body = await withoutAddresses(mine.body, signal);
  const offset = mine.ids.size;
  const answer = await api.search(state.collection, { ...body, top_k: Math.min(PAGE, windowOf(body) - offset), offset }, signal);
  const { matches, truncated } = answer;
  const cut = truncated === "answer_bytes"; // the next page goes on where this one ends
  const more = matches.some(({ id }) => !mine.ids.has(id));
  mine.done = (matches.length < PAGE && !cut) || !more || mine.ids.size + matches.length >= windowOf(body);
  mine.truncated = mine.done ? truncated : null;
  mine.asked += 1;
  return answer;
}

const windowOf = ({ group_by: group, collapse }) => (group || collapse ? SIFTED : WINDOW);

/** The images of the next ids: all of them in an order, which is asked for once, or as they are stored, by pages.
 *
 * A search that skips the first images costs more the more it skips (0.7 s for the 9,000th of 10,000); looking up
 * sixty ids costs 20 ms, wherever they are. */
async function nextOfIds(mine, signal) {
  mine.asked += 1;
  while (mine.order.length < PAGE && mine.cursor !== null) await moreIds(mine, signal);
  const some = mine.order.splice(0, PAGE);
  let answer = { matches: [], took_ms: 0, timing: [] };
  if (some.length) {
    const body = { ...mine.body, filter: { id: { $in: some } }, vector: anyDirection(collections.current().dim), top_k: some.length };
    answer = await api.search(state.collection, body, signal);
  }
  const place = new Map(some.map((id, n) => [id, n]));
  answer.matches.sort((a, b) => place.get(a.id) - place.get(b.id));
  if (answer.truncated === "answer_bytes") { // the rest of them has no room: next time
    for (const { id } of answer.matches) place.delete(id);
    mine.order.unshift(...place.keys());
  }
  mine.done = !mine.order.length && mine.cursor === null;
  return answer;
}

async function moreIds(mine, signal) {
  const { namespace, filter } = mine.body;
  if (isSorted(state)) {
    mine.order = await api.orderedIds(state.collection, { namespace, filter, ...orderOf(state.sort) }, signal);
    mine.cursor = null;
    return;
  }
  const limit = mine.cursor ? IDS : PAGE;
  const { ids: some, next } = await api.idsFrom(state.collection, { namespace, limit, cursor: mine.cursor }, signal);
  mine.order.push(...some);
  mine.cursor = next;
}

/** The query with embeddings in place of addresses, so that an image is fetched once and not for every page. */
async function withoutAddresses(body, signal) {
  const swapped = async ({ image, ...rest }) => (image ? { ...rest, vector: await embeddingOf(image.url, signal) } : rest);
  return body.terms ? { ...body, terms: await Promise.all(body.terms.map(swapped)) } : swapped(body);
}

async function embeddingOf(url, signal) {
  const { model } = collections.current();
  const name = JSON.stringify([model, url]);
  if (!embedded.has(name)) embedded.set(name, await api.embedUrl(url, model, signal));
  return embedded.get(name);
}

function show({ matches, took_ms: took, timing, truncated_texts: cut = [] }, first) {
  const scored = !asksNothing(state);
  const new_ = matches.filter(({ id }) => !shown.ids.has(id));
  const tiles = new_.map((match, place) => tile(match, { scored, lazy: !first || place > 23, focusable: first && place === 0 }));
  for (const match of new_) shown.ids.add(match.id);
  shown.matches.push(...new_);
  fields.learn(matches);
  if (first) begin(tiles);
  else grid.append(...tiles);
  grid.removeAttribute("aria-busy");
  if (first) {
    shown.said = { found: matches.length, took, timing, scored, isCut: cut.length > 0 };
    summarise(shown.said);
    view.render();
  }
  more.replaceChildren(...(shown.done ? end() : [el("span", { class: "spinner" })]));
  watch();
}

/** The first tiles of a query. Who moved among the images before goes on with the first one. */
function begin(tiles) {
  const focused = grid.contains(document.activeElement);
  grid.replaceChildren(...tiles);
  if (focused) grid.querySelector("a")?.focus({ preventScroll: true });
}

/** The keyboard goes on from this image, if it is here. */
export function focusOn(id) {
  const link = grid.querySelector(`a[data-id="${CSS.escape(id)}"]`);
  if (link) focus(link);
}

function summarise({ found, took, timing, scored, isCut }) {
  $("summary").title = scored ? timing.map(([stage, ms]) => `${stage} ${ms.toFixed(1)} ms`).join(" · ") : "";
  const all = collections.current().count;
  const narrowed = state.where.length > 0 || state.namespace !== "default";
  const said = scored && found ? [`nearest first · ${Math.max(1, Math.round(took))} ms`] : [];
  if (isCut) said.push("the model reads only the beginning of these words");
  const say = (...first) => {
    $("summary").textContent = [...first, ...said].join(" · ");
  };
  if (narrowed) sayHowManyPass(say, all);
  say(...(scored || narrowed ? [] : [many(all, "image")]));
  announce(found ? (scored ? "Images found, nearest first" : "Images of the collection") : "No images found");
}

async function sayHowManyPass(say, all) {
  const mine = shown;
  const { filter, namespace } = mine.body;
  const passing = await api.countImages(state.collection, { filter, namespace }, asking.signal).catch(() => null);
  if (mine === shown && passing !== null) say(`${count(passing)} of ${many(all, "image")}`);
}

function end() {
  if (!shown.ids.size) return [nothing()];
  const most = shown.order ? Infinity : windowOf(shown.body);
  if (shown.ids.size >= most) return [`The first ${count(most)}. Filters narrow the search.`];
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
  const running = jobs.activeIn(state.collection);
  if (running.length) return filling(running);
  if (!access.may("write")) return message(`${state.collection} is empty`, "Whoever has a key that may write can add images.");
  return message(`${state.collection} is empty`, "Drop images or a folder anywhere on this page. What goes in can be searched at once.",
    button("Add images", () => $("add").click(), { class: "button main" }));
}

function filling(running) {
  const done = running.reduce((sum, job) => sum + job.done, 0);
  const total = running.reduce((sum, job) => sum + job.total, 0);
  return message("Nothing is in yet", `${many(running.length, "job")} at work for ${state.collection}: ${count(done)} of ${many(total, "image")} so far. Images appear here when they are in.`,
    el("a", { class: "button", href: href({ view: "jobs", image: "" }), "data-view": "jobs" }, "Show jobs"));
}

/** A job has news: an empty collection may have images now. */
export function jobsChanged() {
  if (state.view !== "search" || !shown.done || shown.ids.size || !collections.current()) return;
  if (jobs.activeIn(state.collection).some((job) => job.done)) refresh();
  else more.replaceChildren(...end());
}

function showWithoutCollection() {
  grid.replaceChildren();
  grid.removeAttribute("aria-busy");
  $("summary").textContent = "";
  shown.done = true;
  if (!collections.all().length) {
    if (!access.may("write")) return more.replaceChildren(message("No collection yet", "Whoever has a key that may write can make one."));
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
    more.replaceChildren(message("An API key is needed", sentence(error.message), button("Enter the key", () => {
      key.askAgain();
      again();
    })));
    return;
  }
  if (!error.passing) {
    more.replaceChildren(refusal(error));
    return;
  }
  waited = Math.min(LONGEST_WAIT_S, error.retryAfter || (waited || 1) * 2);
  const soon = `This page asks again in ${seconds(waited)}.`;
  more.replaceChildren(error.lacksWorker
    ? message("Searching has to wait", `The part of the service that reads queries is not running. It may still be starting. ${soon}`,
      button("Ask now", again), forOperators(error))
    : message(error.status ? "The service is not ready" : "The service is away", `${sentence(error.message)} ${soon}`, button("Ask now", again)));
  waiting = setTimeout(again, waited * 1000);
}

function refusal(error) {
  if (error.status === 401) return message("This service answers only its own machine", sentence(error.message));
  if (error.status === 403) return message("The service does not allow this", sentence(error.message));
  if (isSorted(state)) {
    return message("These images cannot be sorted", sentence(error.message), button("Show them in any order", () => go({ sort: "" }, { replace: true })));
  }
  return message("This cannot be searched for", sentence(error.message));
}

const forOperators = (error) => el("details", {}, el("summary", {}, "For who runs it"), el("p", {}, sentence(error.message)));

function sayWhatIsMissing() {
  const missing = state.terms.filter(isMissing).map((term) => term.value);
  if (missing.length) notify(`A link cannot carry an image. Drop ${missing.join(", ")} here again to search by it.`);
}

/** `wrong`: something did not work. */
export function notify(text, { wrong = false } = {}) {
  const close = el("button", { type: "button", class: "plain", "aria-label": "Close this message", onclick: closeNotice }, icon("close"));
  $("notice").replaceChildren(el("span", {}, text), close);
  $("notice").classList.toggle("wrong", wrong);
  $("notice").hidden = false;
}

const closeNotice = () => {
  $("notice").hidden = true;
};

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
