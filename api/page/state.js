// What the page shows, and how its address says so.
//
// ?in=photos&q=a+dog&text*-1=snow&id=cat.jpg&where.year.gte=1990&image=rex.jpg
//
// A term is {kind: "text" | "id" | "image", value, weight}; a name ending in *-1 carries the weight.
// An image that was dropped cannot be in an address: only its name is (`dropped=cat.jpg`), while its
// embedding and a small preview live in the entry of this tab's history.

const EMPTY = { view: "search", collection: "", namespace: "default", text: "", terms: [], where: [], image: "" };
const TERM = /^(text|id|dropped)(?:\*(-?\d+(?:\.\d+)?))?$/;
const WHERE = /^where\.(.+)\.(eq|ne|gte|lte|exists)$/s;

export const VIEWS = ["search", "collections", "jobs"];

export const state = { ...EMPTY };

const listeners = [];
export const onChange = (listener) => listeners.push(listener);

/** Show something else. `replace`: without a new step for the Back button. */
export function go(changes, { replace = false, over = false } = {}) {
  Object.assign(state, changes);
  const dropped = state.terms.filter((term) => term.kind === "image");
  const entry = { dropped, over: over || (replace && history.state?.over) };
  if (replace) history.replaceState(entry, "", href(state));
  else history.pushState(entry, "", href(state));
  changed();
}

/** The address of the page with these changes. */
export function href(changes = {}) {
  const shown = { ...state, ...changes };
  const params = new URLSearchParams();
  if (shown.view !== "search") params.set("view", shown.view);
  if (shown.collection) params.set("in", shown.collection);
  if (shown.namespace !== "default") params.set("namespace", shown.namespace);
  if (shown.text) params.set("q", shown.text);
  for (const { kind, value, weight } of shown.terms) {
    const name = kind === "image" ? "dropped" : kind;
    params.append(weight === 1 ? name : `${name}*${weight}`, value);
  }
  for (const { field, op, value } of shown.where) params.append(`where.${field}.${op}`, value);
  if (shown.image) params.set("image", shown.image);
  const query = params.toString();
  return query ? `./?${query}` : "./"; // relative: the page may be below a prefix
}

export function readAddress() {
  const params = new URLSearchParams(location.search);
  const dropped = [...(history.state?.dropped ?? [])];
  Object.assign(state, EMPTY, {
    view: VIEWS.includes(params.get("view")) ? params.get("view") : "search",
    collection: params.get("in") ?? "",
    namespace: params.get("namespace") || "default",
    text: params.get("q") ?? "",
    image: params.get("image") ?? "",
    terms: [],
    where: [],
  });
  for (const [name, value] of params) {
    const term = TERM.exec(name);
    if (term && value) state.terms.push(readTerm(term, value, dropped));
    const where = WHERE.exec(name);
    if (where) state.where.push({ field: where[1], op: where[2], value });
  }
  changed();
}

function readTerm([, name, given], value, dropped) {
  const weight = Number(given ?? 1);
  if (name !== "dropped") return { kind: name, value, weight };
  const known = dropped.findIndex((term) => term.value === value);
  return { kind: "image", value, ...(known < 0 ? {} : dropped.splice(known, 1)[0]), weight };
}

/** Everything looks at what is to be shown, and shows it. */
export function changed() {
  for (const listener of listeners) listener();
}

addEventListener("popstate", readAddress);
