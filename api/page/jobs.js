// The jobs: a list that is looked at now and then, and streams of events of those that run.

import * as api from "./api.js";
import { $, announce, button, el, message, sentence } from "./dom.js";
import { follow as followEvents } from "./follow.js";
import { isActive, jobRow } from "./jobrow.js";
import { state } from "./state.js";

const PAGE = 30;
const STREAMS = 2; // a browser has six connections to a host, and a stream holds one
const BUSY_MS = 2_000;
const IDLE_MS = 15_000;

const rows = new Map();
const streams = new Map();
const endListeners = [];
const newsListeners = [];

let known = new Map();
let wanted = PAGE;
let timer = 0;
let trouble = "";

/** Told of every job that this page saw end. */
export const onEnd = (listener) => endListeners.push(listener);

/** Told whenever something may have changed. */
export const onNews = (listener) => newsListeners.push(listener);

/** The jobs at work for a collection. */
export const activeIn = (collection) => active().filter((job) => job.collection === collection);

/** Ask for the list now, and again as long as there is something to see. */
export async function look() {
  clearTimeout(timer);
  try {
    const listed = await api.jobs(wanted, 0);
    trouble = "";
    const before = known;
    known = new Map(listed.map((job) => [job.id, job]));
    for (const job of listed) noticeEnd(before.get(job.id), job);
  } catch (error) {
    trouble = error.message;
  }
  render();
  const busy = active().length > 0 || Boolean(trouble);
  clearTimeout(timer);
  if (!document.hidden && (busy || state.view === "jobs")) timer = setTimeout(look, busy ? BUSY_MS : IDLE_MS);
}

const active = () => [...known.values()].filter(isActive);

function noticeEnd(before, job) {
  if (!before || !isActive(before) || isActive(job)) return;
  announce(`The job in ${job.collection} has ended: ${job.state}`);
  for (const listener of endListeners) listener(job);
}

/** One job's news, from its stream or from an answer. */
function take(job) {
  const before = known.get(job.id);
  known = before ? known.set(job.id, job) : new Map([[job.id, job], ...known]);
  noticeEnd(before, job);
  render();
}

export function render() {
  for (const listener of newsListeners) listener();
  const running = active().length;
  $("active-jobs").textContent = running;
  $("active-jobs").hidden = !running;
  $("to-jobs").setAttribute("aria-label", running ? `Jobs, ${running} at work` : "Jobs");
  follow();
  if (state.view !== "jobs") return;
  const only = $("this-collection").checked;
  const listed = [...known.values()].filter((job) => !only || job.collection === state.collection);
  const nodes = listed.map(rowOf);
  if (nodes.some((node, place) => node !== $("jobs").children[place]) || nodes.length !== $("jobs").childElementCount) {
    arrange(nodes);
  }
  $("jobs-more").replaceChildren(...foot(listed));
}

/** Rows that stay keep their place in the document, and with it their focus. */
function arrange(nodes) {
  const list = $("jobs");
  for (const old of [...list.children]) if (!nodes.includes(old)) old.remove();
  nodes.forEach((node, place) => {
    if (list.children[place] !== node) list.insertBefore(node, list.children[place] ?? null);
  });
}

function rowOf(job) {
  if (!rows.has(job.id)) rows.set(job.id, jobRow(job.id, changed));
  const { node, update } = rows.get(job.id);
  update(job);
  return node;
}

function changed(job) {
  take(job);
  look();
}

function foot(listed) {
  if (trouble) return [el("p", { class: "wrong" }, `${sentence(trouble)} This page asks again.`)];
  if (!listed.length) return [message("No jobs", "A job appears here when images are added, here or by clipfleet index.")];
  if (known.size < wanted) return [];
  return [button("Older jobs", () => {
    wanted = Math.min(1_000, wanted + PAGE);
    look();
  })];
}

/** Live events of the first jobs at work, as long as somebody looks. */
function follow() {
  const looked = state.view === "jobs" && !document.hidden;
  const followed = looked ? active().sort((a, b) => (b.started_at ?? 0) - (a.started_at ?? 0)).slice(-STREAMS).map((job) => job.id) : [];
  for (const [id, stream] of streams) {
    if (followed.includes(id)) continue;
    stream.close();
    streams.delete(id);
  }
  for (const id of followed) if (!streams.has(id)) streams.set(id, open(id));
}

function open(id) {
  const stream = followEvents(api.eventsPath(id), {
    job: take,
    deleted() {
      known.delete(id);
      rows.delete(id);
      render();
    },
    end: () => streams.get(id) === stream && streams.delete(id),
  });
  return stream;
}

$("this-collection").addEventListener("change", render);
document.addEventListener("visibilitychange", look);
