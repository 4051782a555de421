// The service, as docs/ and /docs describe it.

import * as early from "./early.js";
import * as key from "./key.js";

/** What the service says is wrong; `status` 0 when it does not answer at all. */
export class Problem extends Error {
  constructor(detail, status = 0, retryAfter = 0, { type = "", title = "", model = "" } = {}) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
    this.type = type;
    this.title = title;
    this.model = model;
  }

  /** The service itself is there, and nobody answers queries yet, or any more. */
  get lacksWorker() {
    return this.status === 503 && Boolean(this.model);
  }

  /** Another key may be welcome; a service without keys wants none. */
  get wantsKey() {
    return this.status === 401 && !this.type.endsWith(":no-keys");
  }

  /** It may go better later, without anything being changed. */
  get passing() {
    return [0, 429, 502, 503, 504].includes(this.status);
  }
}

export const AWAY = "The service does not answer. Is clipfleet still running?";

/** `seen` gets the headers of an answer that is no problem. */
export async function call(path, { method = "GET", json, signal, seen } = {}) {
  const body = json === undefined ? undefined : JSON.stringify(json);
  const tried = key.now();
  const headers = { ...key.headers(), ...(body === undefined ? {} : { "Content-Type": "application/json" }) };
  let answer;
  try {
    answer = (method === "GET" && (await early.take(path))) || (await fetch(path, { method, headers, body, signal }));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(AWAY);
  }
  const text = await answer.text();
  if (answer.ok) seen?.(answer.headers);
  if (answer.ok) return text ? JSON.parse(text) : null;
  const wrong = problem(answer.status, text, answer.headers.get("Retry-After"));
  if (wrong.wantsKey && (await key.ask(tried, wrong.message))) return call(path, { method, json, signal, seen });
  throw wrong;
}

export function problem(status, text, retryAfter) {
  let detail = `The service answered with status ${status}.`;
  let more = {};
  try {
    ({ detail = detail, ...more } = JSON.parse(text));
  } catch {
    // Not ours: a proxy's page, perhaps.
  }
  return new Problem(detail, status, Number(retryAfter) || 0, more);
}

const at = (name, rest = "") => `v1/collections/${encodeURIComponent(name)}${rest}`;

export const collections = async () => (await call("v1/collections")).collections;
export const aliases = async () => (await call("v1/aliases")).aliases;
export const migration = (name) => call(at(name, "/migrations"));
export const mapOf = (name, namespace, signal) => call(at(name, `/map?${new URLSearchParams({ namespace })}`), { signal });
export const mapPoints = (name, params, signal) => call(at(name, `/map/points?${new URLSearchParams(params)}`), { signal });
export const makeMap = (name, json) => call(at(name, "/map"), { method: "POST", json });
export const makeCollection = (name, json) => call(at(name), { method: "PUT", json });
export const deleteCollection = (name) => call(at(name), { method: "DELETE" });

/** The answer has `timing` as well: what the service says of its stages, as [[name, milliseconds], …]. */
export async function search(name, json, signal) {
  let timing = [];
  const seen = (headers) => {
    timing = [...(headers.get("Server-Timing") ?? "").matchAll(/([a-z]+);dur=([0-9.]+)/g)].map(([, stage, ms]) => [stage, Number(ms)]);
  };
  const answer = await call(at(name, "/search"), { method: "POST", json, signal, seen });
  return { ...answer, timing };
}

export const countImages = async (name, json, signal) => (await call(at(name, "/count"), { method: "POST", json, signal })).count;

export const openUpload = (name) => call(at(name, "/uploads"), { method: "POST", json: {} });
export const uploadPath = (name, id) => at(name, `/uploads/${encodeURIComponent(id)}/images`);
export const startUpload = (name, id, json) => call(at(name, `/uploads/${encodeURIComponent(id)}/job`), { method: "POST", json });
export const deleteUpload = (name, id) => call(at(name, `/uploads/${encodeURIComponent(id)}`), { method: "DELETE" });

export const image = (name, id, namespace, signal) =>
  call(at(name, `/images?${new URLSearchParams({ id, namespace })}`), { signal });

export const thumbnail = (name, id, namespace) =>
  at(name, `/thumbnail?${new URLSearchParams(namespace === "default" ? { id } : { id, namespace })}`);

const of = (id, namespace, more = {}) => new URLSearchParams({ id, ...(namespace === "default" ? {} : { namespace }), ...more });

/** The file that an image was made of; `more`: {download: true}. */
export const original = (name, id, namespace, more) => at(name, `/images/original?${of(id, namespace, more)}`);

/** A JPEG of a thousand pixels, made of it. */
export const preview = (name, id, namespace) => at(name, `/images/preview?${of(id, namespace)}`);

/** The answer itself; a Problem where the service refuses. */
export async function open(path, { headers = {}, signal } = {}) {
  let answer;
  try {
    answer = await fetch(path, { headers: { ...key.headers(), ...headers }, signal, redirect: "manual" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(AWAY);
  }
  if (answer.ok) return answer;
  if (answer.type === "opaqueredirect") throw new Problem("It is on another server, which this page does not ask.", 307);
  throw problem(answer.status, await answer.text(), answer.headers.get("Retry-After"));
}

/** What there is of an original, without fetching it: {type, bytes}. */
export async function originalAbout(name, id, namespace, signal) {
  const { headers } = await open(original(name, id, namespace), { headers: { Range: "bytes=0-0" }, signal });
  return { type: headers.get("Content-Type"), bytes: Number(headers.get("Content-Range")?.split("/").pop()) || 0 };
}

export const deleteImage = (name, id, namespace) => call(at(name, `/images?${of(id, namespace)}`), { method: "DELETE" });

/** Delete by ids; each request names as many as it may. */
export async function deleteImages(name, ids, namespace) {
  let deleted = 0;
  for (const some of inParts(ids)) {
    const json = { filter: { id: { $in: some } }, namespace };
    for (let more = true; more;) {
      const answer = await call(at(name, "/delete"), { method: "POST", json });
      deleted += answer.deleted;
      ({ more } = answer);
    }
  }
  return deleted;
}

const LARGEST_FILTER = 24_000; // bytes of the ids in one deletion; the service takes 32,000 of the whole
const MOST_IDS = 200;

/** Ids in lists that are short enough for a filter. */
export function inParts(ids) {
  const parts = [[]];
  let size = 0;
  for (const id of ids) {
    const more = new TextEncoder().encode(JSON.stringify(id)).length + 2;
    if (parts.at(-1).length && (size + more > LARGEST_FILTER || parts.at(-1).length >= MOST_IDS)) {
      parts.push([]);
      size = 0;
    }
    parts.at(-1).push(id);
    size += more;
  }
  return parts;
}

/** Give images a label, or none. */
export async function label(name, ids, text, namespace) {
  let updated = 0;
  for (const some of inParts(ids)) {
    const json = { namespace, images: some.map((id) => ({ id, label: text || null })) };
    updated += (await call(at(name, "/images"), { method: "PATCH", json })).updated;
  }
  return { updated };
}

/** The ids of all images that pass the filter, in the order of a field. */
export const orderedIds = async (name, json, signal) => (await call(at(name, "/ids"), { method: "POST", json, signal })).ids;

/** Some ids as they are stored, and the cursor of the next ones; null at the end. */
export const idsFrom = (name, params, signal) => call(early.idsPath(name, params), { signal });

/** What the key may do: {scopes, collections}. */
export const ownKey = () => call("v1/key");

/** The embedding of an image file: with it a search can go on page by page without the file. */
export const embed = async (file, model) => embedding({ base64: await base64(file) }, model);

/** The embedding of the image at an address: so it is fetched once. */
export const embedUrl = (url, model, signal) => embedding({ url }, model, signal);

const embedding = async (image, model, signal) =>
  (await call("v1/embed", { method: "POST", json: { images: [image], model }, signal })).embeddings[0];

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Problem(`${file.name} cannot be read: ${reader.error.message}`, 422));
    reader.readAsDataURL(file);
  });
}

const job = (id, rest = "") => `v1/jobs/${encodeURIComponent(id)}${rest}`;

export const jobs = async (limit, offset) => (await call(`v1/jobs?limit=${limit}&offset=${offset}`)).jobs;
export const oneJob = (id) => call(job(id));
export const failures = (id, offset) => call(job(id, `/failures?limit=50&offset=${offset}`));
export const cancelJob = (id) => call(job(id, "/cancel"), { method: "POST" });
export const retryJob = (id) => call(job(id, "/retry"), { method: "POST" });
export const eventsPath = (id) => job(id, "/events");
