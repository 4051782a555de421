// Uploads on their way: one batch after the other, with a tray that says how far they are.

import * as api from "./api.js";
import { $, announce, button, count, el, icon, many, seconds, sentence } from "./dom.js";
import { isActive } from "./jobrow.js";
import * as jobs from "./jobs.js";
import * as key from "./key.js";
import { href } from "./state.js";

const FIRST_WAIT_S = 2;
const LONGEST_WAIT_S = 30;

const FOLLOWED_S = 1;

let now = null; // the upload under way
let latest = null; // the last one that was sent, whose jobs are followed

export const busy = () => now !== null;

/** Send them all. A passing trouble is waited out; a refused batch is reported and left out. */
export async function send(collection, batches) {
  const files = batches.reduce((sum, batch) => sum + batch.files.length, 0);
  const all = batches.reduce((sum, { files: some }) => sum + some.reduce((bytes, { file }) => bytes + file.size, 0), 0);
  now = { collection, files, bytes: Math.max(1, all), sent: 0, done: 0, jobs: [], refused: [], wait: "", stopped: new AbortController() };
  render();
  for (const batch of batches) {
    if (now.stopped.signal.aborted) break;
    await sendPatiently(batch, now);
  }
  const ended = now;
  now = null;
  renderEnd(ended);
  await followToTheEnd(ended);
}

/** What becomes of the images that were sent: the tray says it, unless it was closed or taken by another upload. */
async function followToTheEnd(upload) {
  latest = upload;
  while (latest === upload && !now && !$("tray").hidden && upload.jobs.some(isActive)) {
    await paused(FOLLOWED_S, upload.stopped.signal);
    const all = upload.jobs.map((job) => (isActive(job) ? api.jobNow(job.id).catch(() => job) : job));
    upload.jobs = await Promise.all(all);
    if (latest === upload && !now && !$("tray").hidden) renderEnd(upload);
  }
}

async function sendPatiently(batch, upload) {
  const once = [...crypto.getRandomValues(new Uint32Array(4))].join("-");
  for (let wait = FIRST_WAIT_S; ; wait = Math.min(LONGEST_WAIT_S, wait * 2)) {
    try {
      upload.jobs.push(await post(batch, once, upload));
      upload.done += batch.files.length;
      upload.sent += sizeOf(batch);
      announce(`${count(upload.done)} of ${many(upload.files, "image")} sent`);
      jobs.look();
      return;
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!error.passing) {
        upload.refused.push({ reason: error.message, files: batch.files.length });
        return;
      }
      const pause = error.retryAfter || wait;
      upload.wait = `${sentence(error.message)} Tried again in ${seconds(pause)}.`;
      render();
      await paused(pause, upload.stopped.signal);
      upload.wait = "";
      if (upload.stopped.signal.aborted) return;
    }
  }
}

const sizeOf = (batch) => batch.files.reduce((sum, { file }) => sum + file.size, 0);

function paused(pause, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, pause * 1000);
    signal.addEventListener("abort", resolve);
  });
}

/** XMLHttpRequest, because fetch does not say how much of a request is out. */
function post(batch, once, upload) {
  const form = new FormData();
  if (batch.label) form.append("label", batch.label);
  for (const { file, path } of batch.files) form.append("files", file, path);
  const request = new XMLHttpRequest();
  return new Promise((resolve, reject) => {
    request.open("POST", api.uploadPath(upload.collection));
    for (const [name, value] of Object.entries({ ...key.headers(), "Idempotency-Key": once })) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded }) => render(loaded);
    request.onload = () => {
      if (request.status < 300) resolve(JSON.parse(request.responseText));
      else reject(api.problem(request.status, request.responseText, request.getResponseHeader("Retry-After")));
    };
    request.onerror = () => reject(new api.Problem(api.AWAY));
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    upload.stopped.signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

function render(loaded = 0) {
  if (!now) return;
  const share = Math.min(1, (now.sent + loaded) / now.bytes);
  const tray = $("tray");
  if (!tray.querySelector("progress")) {
    const upload = now;
    tray.replaceChildren(
      el("p", { class: "tray-title" }, el("b", {}, `Sending ${many(now.files, "image")} to ${now.collection}`), button("Stop", () => upload.stopped.abort())),
      el("progress", { max: 1, "aria-label": "Sent" }), el("p", { class: "muted tray-state" }));
    tray.hidden = false;
  }
  tray.querySelector("progress").value = share;
  tray.querySelector(".tray-state").textContent = now.wait || `${Math.floor(share * 100)} %, ${many(now.jobs.length, "job")} started. Keep this page open.`;
}

function renderEnd({ done, files, jobs: made, refused, collection, stopped }) {
  const close = el("button", { type: "button", class: "plain", "aria-label": "Close this message", onclick: () => ($("tray").hidden = true) }, icon("close"));
  const title = stopped.signal.aborted ? `Stopped: ${count(done)} of ${many(files, "image")} sent` : `${many(done, "image")} sent to ${collection}`;
  const problems = refused.map(({ reason, files: some }) => el("p", { class: "wrong" }, `${many(some, "image")} refused: ${sentence(reason)}`));
  const look = el("a", { href: href({ view: "jobs", image: "" }), "data-view": "jobs" }, "Show jobs");
  const said = made.length ? outcome(made) : "";
  $("tray").replaceChildren(el("p", { class: "tray-title" }, el("b", {}, title), close), ...problems,
    said ? el("p", { class: "tray-state" }, `${said} `, look) : "");
  if (said !== announced) announce([title, said].filter(Boolean).join(". "));
  announced = said;
}

let announced = "";

/** "40 in, 2 failed." */
function outcome(made) {
  const sum = (name) => made.reduce((all, job) => all + job[name], 0);
  const parts = [`${count(sum("done"))} in`];
  if (sum("skipped")) parts.push(`${count(sum("skipped"))} were in already`);
  if (sum("failed")) parts.push(`${count(sum("failed"))} failed`);
  const said = parts.join(", ");
  if (made.some(isActive)) return sum("done") + sum("failed") + sum("skipped") ? `Being indexed: ${said} so far.` : "Being indexed.";
  return `${said}.`;
}

addEventListener("beforeunload", (event) => busy() && event.preventDefault());
