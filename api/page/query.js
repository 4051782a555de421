// From what the page shows to what the service is asked.

export const OPERATORS = { eq: "is", ne: "is not", prefix: "begins with", gte: "≥", lte: "≤", exists: "is given" };

export const BUILT_IN = {
  id: "string", uri: "string", label: "string", job_id: "string",
  bytes: "int", width: "int", height: "int", indexed_at: "int",
};

const OPERATORS_OF = {
  bool: ["eq", "exists"],
  string: ["eq", "ne", "prefix", "exists"],
  any: ["eq", "ne", "gte", "lte", "prefix", "exists"],
  "string[]": ["eq", "ne", "exists"], // of one of its elements
  "int[]": ["eq", "ne", "exists"],
};

export const operatorsFor = (kind) => OPERATORS_OF[kind] ?? ["eq", "gte", "lte", "ne", "exists"];

/** A dropped image that came with somebody else's address: only its name did. */
export const isMissing = (term) => term.kind === "image" && !term.vector;

export function searchBody(state, collection) {
  const terms = state.terms.filter((term) => !isMissing(term)).map(asked);
  if (state.text) terms.push({ text: state.text, weight: 1 });
  const body = { namespace: state.namespace, include_size: true };
  const filter = filterOf(state.where, collection);
  if (filter) body.filter = filter;
  if (state.group) body.group_by = state.group;
  if (state.collapse) body.collapse = Math.min(1, Number(state.collapse));
  if (terms.length === 0) return { ...body, vector: anyDirection(collection.dim) };
  if (terms.length > 1 || terms[0].weight < 0) return { ...body, terms };
  const [{ weight, ...only }] = terms;
  return { ...body, ...only };
}

/** Nobody asked for anything, so any order of the images will do, as long as it stays the same. */
export const anyDirection = (dim) => Array.from({ length: dim }, (_, n) => Math.sin(n + 1));

export const asksNothing = (state) => !state.text && !state.terms.some((term) => !isMissing(term));

/** The images are to be sorted: only where nothing decides their order already. */
export const isSorted = (state) => Boolean(state.sort) && asksNothing(state) && !state.group && !state.collapse;

/** `-year` is the field `year`, the largest first. */
export const orderOf = (sort) => ({ order_by: sort.replace(/^-/, ""), descending: sort.startsWith("-") });

function asked({ kind, value, weight, vector }) {
  if (vector) return { vector, weight };
  if (kind === "url") return { image: { url: value }, weight };
  return kind === "id" ? { id: value, weight } : { text: value, weight };
}

/** All conditions hold; several "is" on one field mean any of these values. */
export function filterOf(where, collection) {
  const parts = [];
  const wanted = new Map();
  for (const { field, op, value } of where) {
    const kind = kindOf(field, collection);
    if (op === "exists") parts.push({ [field]: { $exists: value !== "false" } });
    else if (op === "eq") wanted.set(field, [...(wanted.get(field) ?? []), ...readings(value, kind)]);
    else if (op === "ne") parts.push({ [field]: oneOrMany(readings(value, kind), "$ne", "$nin") });
    else parts.push({ [field]: { [`$${op}`]: op === "prefix" ? value : parse(value, kind) } });
  }
  for (const [field, values] of wanted) parts.push({ [field]: oneOrMany(values, "$eq", "$in") });
  return parts.length > 1 ? { $and: parts } : parts[0];
}

const oneOrMany = (values, one, many) => (values.length === 1 ? { [one]: values[0] } : { [many]: values });

export const kindOf = (field, collection) => collection.fields[field] ?? BUILT_IN[field] ?? "any";

/** What the words may mean: 2019 in a field that nobody declared may be a number or a text. */
function readings(value, kind) {
  if (kind !== "any") return [parse(value, kind)];
  const others = value === "true" || value === "false" ? [value === "true"] : isNumber(value) ? [Number(value)] : [];
  return [value, ...others];
}

const isNumber = (value) => value.trim() !== "" && !Number.isNaN(Number(value));

function parse(value, kind) {
  if (kind === "bool") return value === "true";
  return kind.startsWith("string") || !isNumber(value) ? value : Number(value);
}

export function describe({ field, op, value }) {
  if (op === "exists") return value === "false" ? `${field} is not given` : `${field} is given`;
  return `${field} ${OPERATORS[op]} ${value}`;
}
