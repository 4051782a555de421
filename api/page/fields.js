// Fields and values that the images of a collection have, beside the declared fields.

import * as api from "./api.js";
import { current } from "./collections.js";
import { anyDirection } from "./query.js";
import { state } from "./state.js";

const MOST_VALUES = 500;
const MOST_FIELDS = 60;

let seenIn = "";
let seen = new Map();
const asked = new Set();

/** {field: Set of its values} of the collection that is shown. */
function here() {
  const place = JSON.stringify([state.collection, state.namespace, current()?.created_at]);
  if (place !== seenIn) {
    seenIn = place;
    seen = new Map();
    asked.clear();
  }
  return seen;
}

/** Remember what these images have. */
export function learn(matches) {
  const fields = here();
  for (const { label, metadata } of matches) {
    for (const [name, value] of Object.entries({ label, ...metadata })) {
      if (value === null || typeof value === "object") continue;
      if (!fields.has(name) && fields.size < MOST_FIELDS) fields.set(name, new Set());
      const values = fields.get(name);
      if (values && values.size < MOST_VALUES) values.add(value);
    }
  }
}

/** The names that can be filtered by: the label, the declared ones, those that images here have, our own. */
export function names() {
  const declared = Object.keys(current()?.fields ?? {});
  const others = [...here().keys()].filter((name) => name !== "label" && !declared.includes(name)).sort();
  return ["label", ...declared, ...others, "id", "uri", "width", "height", "bytes"];
}

/** Values of a field that were seen, in their order. */
export function valuesOf(field) {
  const values = [...(here().get(field) ?? [])];
  return values.sort((a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b))));
}

/** Ask the service for one image of each value of a field: it looks at 2,000 images. */
export async function lookFor(field) {
  here();
  const collection = current();
  if (!collection || asked.has(field)) return;
  asked.add(field);
  const body = { vector: anyDirection(collection.dim), namespace: state.namespace, group_by: field, top_k: 200 };
  const place = seenIn;
  const { matches } = await api.search(state.collection, body).catch(() => ({ matches: [] }));
  here();
  if (place === seenIn) learn(matches);
}
