// One job as a row that is brought up to date in place, so that focus and open parts stay.

import { may } from "./access.js";
import * as api from "./api.js";
import { ago, button, count, el, many, seconds, when } from "./dom.js";
import { failuresOf } from "./failures.js";
import { href } from "./state.js";

export const ACTIVE = ["queued", "running"];
export const isActive = (job) => ACTIVE.includes(job.state);

/** `changed(job)` is told of a job that the user's request started or ended. */
export function jobRow(id, changed) {
  const badge = el("span", { class: "state" });
  const title = el("b");
  const time = el("time", { class: "muted" });
  const bar = el("progress", { "aria-label": "Progress" });
  const numbers = el("p", { class: "numbers" });
  const said = el("p", { class: "said" });
  const about = el("p", { class: "said" });
  const failures = failuresOf(id);
  const images = el("a", { class: "button quiet", "data-view": "search" }, "Show images");
  const cancel = button("Cancel", () => ask(api.cancelJob));
  const retry = button("Retry the failures", () => ask(api.retryJob));
  const node = el("li", { class: "job", "data-job": id },
    el("div", { class: "job-head" }, badge, title, el("code", { class: "muted" }, id), time, el("span", { class: "actions" }, images, retry, cancel)),
    bar, numbers, said, about, failures.details);

  async function ask(request) {
    cancel.disabled = retry.disabled = true;
    try {
      changed(await request(id));
    } catch (error) {
      said.textContent = error.message;
    }
    cancel.disabled = retry.disabled = false;
  }

  function update(job) {
    const finished = job.done + job.failed + job.skipped;
    badge.textContent = job.state;
    badge.className = `state ${job.state}`;
    title.textContent = job.collection;
    time.textContent = ago(job.created_at);
    time.title = when(job.created_at);
    bar.hidden = !isActive(job);
    if (job.total) [bar.max, bar.value] = [job.total, finished];
    else bar.removeAttribute("value");
    numbers.textContent = isActive(job) ? progress(job, finished) : outcome(job, finished);
    said.textContent = job.error ?? job.waiting ?? "";
    about.textContent = notes(job);
    said.classList.toggle("wrong", Boolean(job.error));
    failures.show(job.failed);
    images.href = href({ view: "search", collection: job.collection, namespace: job.namespace, text: "", terms: [], image: "",
      where: [{ field: "job_id", op: "eq", value: id }] });
    images.hidden = !job.done;
    cancel.hidden = !isActive(job) || !may("write");
    retry.hidden = isActive(job) || !may("write") || !job.failed || Boolean(job.retried_by);
  }

  return { node, update };
}

function notes(job) {
  const parts = job.retry_of ? [`tries the failures of ${job.retry_of} again`] : job.source ? [`from ${job.source}`] : [];
  const names = { "": "without suffix", "*": "others" };
  const files = Object.entries(job.left_out);
  if (files.length) {
    const total = files.reduce((sum, [, number]) => sum + number, 0);
    const counts = files.map(([suffix, number]) => `${count(number)} ${names[suffix] ?? suffix}`);
    parts.push(`${many(total, "file")} left out: ${counts.join(", ")}`);
  }
  parts.push(...mirrored(job));
  parts.push(...Object.entries(job.remarks).map(([text, number]) => `${text} (${count(number)})`));
  return parts.join(" · ");
}

function mirrored({ mirror, error }) {
  if (!mirror) return [];
  const parts = [mirror.dry_run ? "dry run of a mirror" : "mirror"];
  if (mirror.gone === null) return parts;
  if (mirror.dry_run) parts.push(`${count(mirror.new)} new`, `${count(mirror.changed)} perhaps changed`);
  parts.push(`${count(mirror.gone)} gone from the source`);
  if (mirror.deleted) parts.push(`${count(mirror.deleted)} deleted`);
  if (mirror.kept_because && mirror.kept_because !== error) parts.push(mirror.kept_because);
  return [parts.join(", ")];
}

function progress(job, finished) {
  const parts = [job.total ? `${count(finished)} of ${many(job.total, "image")}` : "looking for images"];
  if (job.failed) parts.push(`${count(job.failed)} failed`);
  if (job.skipped) parts.push(`${count(job.skipped)} were in`);
  if (job.rate) parts.push(`${rate(job.rate)}`);
  if (job.eta_s !== null) parts.push(`${seconds(job.eta_s)} left`);
  return parts.join(" · ");
}

function outcome(job, finished) {
  const parts = job.done || !job.skipped ? [many(job.done, "image")] : [];
  if (job.replaced) parts.push(`${count(job.replaced)} of them replaced others`);
  if (job.updated) parts.push(`${count(job.updated)} of those with the same picture`);
  if (job.failed) parts.push(`${count(job.failed)} failed`);
  if (job.skipped) parts.push(`${count(job.skipped)} were in`);
  if (job.state === "cancelled") parts.push(`${count(Math.max(0, job.total - finished))} not looked at`);
  if (job.started_at && job.finished_at) parts.push(`took ${seconds(job.finished_at - job.started_at)}`);
  if (job.rate && job.done > 20) parts.push(rate(job.rate));
  return parts.join(" · ");
}

const rate = (perSecond) => `${perSecond < 10 ? perSecond.toFixed(1) : count(Math.round(perSecond))} images/s`;
