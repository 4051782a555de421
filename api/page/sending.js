// An upload on its way: one request after the other, then its one job, with a tray that says how far it is.

import * as api from "./api.js";
import { $, announce, button, count, el, icon, many, seconds, sentence } from "./dom.js";
import { isActive } from "./jobrow.js";
import * as jobs from "./jobs.js";
import * as key from "./key.js";
import { href } from "./state.js";

const FIRST_WAIT_S = 2;
const LONGEST_WAIT_S = 30;
const LOOK_S = 1.5; // between two looks at the job

let now = null; // the upload under way

export const busy = () => now !== null;

/**
 * Send them all as one job. A passing trouble is waited out; a refused request is reported and left out.
 * `about`: what the job shows, {left_out, name}.
 */
export async function send(collection, batches, about) {
  const files = batches.reduce((sum, batch) => sum + batch.files.length, 0);
  const all = batches.reduce((sum, batch) => sum + batch.bytes, 0);
  now = { collection, files, bytes: Math.max(1, all), sent: 0, done: 0, refused: [], wait: "", stopped: new AbortController() };
  const upload = now;
  render();
  const opened = await patiently(upload, files, () => api.openUpload(collection));
  for (const batch of opened ? batches : []) {
    if (upload.stopped.signal.aborted) break;
    if (!(await patiently(upload, batch.files.length, () => post(batch, opened.id, upload)))) continue;
    upload.done += batch.files.length;
    upload.sent += batch.bytes;
    announce(`${count(upload.done)} of ${many(files, "image")} sent`);
  }
  const job = await started(upload, opened, about);
  now = null;
  renderEnd(upload, job);
  if (job) await follow(upload, job);
}

/** The job of what was sent, even when the user stopped the rest. */
async function started(upload, opened, about) {
  if (!opened) return null;
  if (!upload.done) {
    await api.deleteUpload(upload.collection, opened.id).catch(() => {}); // it goes by itself in a day
    return null;
  }
  upload.wait = "Starting the job…";
  render();
  const job = await patiently(upload, upload.done, () => api.startUpload(upload.collection, opened.id, about), new AbortController().signal);
  jobs.look();
  return job;
}

/** The answer to a request that is sent until it is answered; nothing if it was refused or the upload stopped. */
async function patiently(upload, files, request, signal = upload.stopped.signal) {
  for (let wait = FIRST_WAIT_S; ; wait = Math.min(LONGEST_WAIT_S, wait * 2)) {
    try {
      return await request();
    } catch (error) {
      if (error.name === "AbortError") return null;
      if (!error.passing) {
        upload.refused.push({ reason: error.message, files });
        return null;
      }
      const pause = error.retryAfter || wait;
      upload.wait = `${sentence(error.message)} Tried again in ${seconds(pause)}.`;
      render();
      await paused(pause, signal);
      upload.wait = "";
      if (signal.aborted) return null;
    }
  }
}

/** Say in the tray how the job ends, unless the tray is closed or has another upload. */
async function follow(upload, job) {
  const line = $("tray").querySelector(".tray-job");
  while (isActive(job) && line.isConnected && !$("tray").hidden) {
    await new Promise((resolve) => setTimeout(resolve, LOOK_S * 1000));
    job = await api.oneJob(job.id).catch(() => job);
  }
  if (isActive(job) || !line.isConnected) return;
  const parts = [`${count(job.done + job.skipped)} in`];
  if (job.skipped) parts.push(`${count(job.skipped)} of them were in before`);
  if (job.replaced) parts.push(`${count(job.replaced)} replaced others of the same name`);
  if (job.updated) parts.push(`${count(job.updated)} of those with the same picture`);
  if (job.failed) parts.push(`${count(job.failed)} failed`);
  if (job.state === "cancelled") parts.push("cancelled");
  line.textContent = `${parts.join(", ")}. `;
  line.classList.toggle("wrong", Boolean(job.failed));
  announce(`${upload.collection}: ${parts.join(", ")}`);
}

function paused(pause, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, pause * 1000);
    signal.addEventListener("abort", resolve);
  });
}

/** XMLHttpRequest, because fetch does not say how much of a request is out. */
function post(batch, id, upload) {
  const form = new FormData();
  form.append("items", JSON.stringify(batch.files.map((one) => ({ id: one.id, label: one.label }))));
  for (const { file } of batch.files) form.append("files", file, "image");
  const request = new XMLHttpRequest();
  return new Promise((resolve, reject) => {
    request.open("POST", api.uploadPath(upload.collection, id));
    for (const [name, value] of Object.entries(key.headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded }) => render(loaded);
    request.onload = () => {
      if (request.status < 300) resolve(true);
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
  tray.querySelector(".tray-state").textContent = now.wait || `${Math.floor(share * 100)} %. Keep this page open.`;
}

function renderEnd({ done, files, refused, collection, stopped }, job) {
  const close = el("button", { type: "button", class: "plain", "aria-label": "Close this message", onclick: () => ($("tray").hidden = true) }, icon("close"));
  const title = stopped.signal.aborted ? `Stopped: ${count(done)} of ${many(files, "image")} sent` : `${many(done, "image")} sent to ${collection}`;
  const problems = refused.map(({ reason, files: some }) => el("p", { class: "wrong" }, `${many(some, "image")} refused: ${sentence(reason)}`));
  const look = el("a", { href: href({ view: "jobs", image: "" }), "data-view": "jobs" }, "Show jobs");
  $("tray").replaceChildren(el("p", { class: "tray-title" }, el("b", {}, title), close), ...problems,
    job ? el("p", {}, el("span", { class: "tray-job" }, "Being indexed in 1 job. "), look) : "");
  announce(title);
}

addEventListener("beforeunload", (event) => busy() && event.preventDefault());
