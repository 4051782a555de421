// From what the page shows to what the service is asked.

export const OPERATORS = { eq: "is", ne: "is not", gte: "≥", lte: "≤", exists: "is given" };

const BUILT_IN = {
  id: "string", uri: "string", label: "string", job_id: "string",
  bytes: "int", width: "int", height: "int", indexed_at: "int",
};

/** Which fields can be filtered by, and what they hold. */
export const fieldsOf = (collection) => ({ label: "string", ...collection.fields });

export const operatorsFor = (kind) =>
  ({ bool: ["eq", "exists"], string: ["eq", "ne", "exists"] })[kind] ?? ["eq", "gte", "lte", "ne", "exists"];

/** A dropped image that came with somebody else's address: only its name did. */
export const isMissing = (term) => term.kind === "image" && !term.vector;

export function searchBody(state, collection) {
  const terms = state.terms.filter((term) => !isMissing(term)).map(asked);
  if (state.text) terms.push({ text: state.text, weight: 1 });
  const body = { namespace: state.namespace };
  const filter = filterOf(state.where, collection);
  if (filter) body.filter = filter;
  if (terms.length === 0) return { ...body, vector: anyDirection(collection.dim) };
  if (terms.length > 1 || terms[0].weight < 0) return { ...body, terms };
  const [{ weight, ...only }] = terms;
  return { ...body, ...only };
}

/** Nobody asked for anything, so any order of the images will do, as long as it stays the same. */
const anyDirection = (dim) => Array.from({ length: dim }, (_, n) => Math.sin(n + 1));

export const asksNothing = (state) => !state.text && !state.terms.some((term) => !isMissing(term));

function asked({ kind, value, weight, vector }) {
  if (kind === "image") return { vector, weight };
  return kind === "id" ? { id: value, weight } : { text: value, weight };
}

/** All conditions hold; several "is" on one field mean any of these values. */
export function filterOf(where, collection) {
  const parts = [];
  const wanted = new Map();
  for (const { field, op, value } of where) {
    const typed = op === "exists" ? value !== "false" : parse(value, kindOf(field, collection));
    if (op !== "eq") parts.push({ [field]: { [`$${op}`]: typed } });
    else wanted.set(field, [...(wanted.get(field) ?? []), typed]);
  }
  for (const [field, values] of wanted) {
    parts.push({ [field]: values.length === 1 ? { $eq: values[0] } : { $in: values } });
  }
  return parts.length > 1 ? { $and: parts } : parts[0];
}

export const kindOf = (field, collection) => collection.fields[field] ?? BUILT_IN[field] ?? "string";

function parse(value, kind) {
  if (kind === "bool") return value === "true";
  return kind === "string" || value.trim() === "" || Number.isNaN(Number(value)) ? value : Number(value);
}

export function describe({ field, op, value }) {
  if (op === "exists") return value === "false" ? `${field} is not given` : `${field} is given`;
  return `${field} ${OPERATORS[op]} ${value}`;
}
