// Ids and metadata of images as a file: JSON lines or CSV, as `clipfleet index` reads them.

import * as api from "./api.js";
import { current } from "./collections.js";
import { save } from "./originals.js";
import { state } from "./state.js";

const KINDS = {
  jsonl: ["application/x-ndjson", (rows) => rows.map((row) => `${JSON.stringify(row)}\n`).join("")],
  csv: ["text/csv", csv],
};

/** Save what is known of the images, in the order of `ids`. The answer: how many there are. */
export async function saveRows(ids, kind, name) {
  const rows = await rowsOf(ids);
  const [type, written] = KINDS[kind];
  save(new Blob([written(rows)], { type }), `${name}.${kind}`);
  return rows.length;
}

async function rowsOf(ids) {
  const { collection, namespace } = state;
  const vector = Array.from({ length: current().dim }, (_, n) => Math.cos(n));
  const known = new Map();
  for (const some of api.inParts(ids)) {
    const body = { vector, namespace, filter: { id: { $in: some } }, top_k: some.length };
    for (const match of (await api.search(collection, body)).matches) known.set(match.id, match);
    for (const id of some.filter((one) => !known.has(one))) { // an index may miss some, and a page be cut short
      const image = await api.image(collection, id, namespace).catch((error) => (error.status === 404 ? null : Promise.reject(error)));
      if (image) known.set(id, image);
    }
  }
  return ids.filter((id) => known.has(id)).map((id) => row(known.get(id)));
}

const row = ({ id, uri, label, metadata }) => ({ id, uri, ...(label ? { label } : {}), ...metadata });

function csv(rows) {
  const columns = [...new Set(["id", "uri", ...rows.flatMap(Object.keys)])];
  return [columns, ...rows.map((one) => columns.map((column) => one[column]))].map((cells) => `${cells.map(cell).join(",")}\r\n`).join("");
}

function cell(value) {
  const text = value === undefined || value === null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
  return /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
