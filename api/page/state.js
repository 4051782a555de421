// What the page shows, and how its address says so.
//
// ?in=photos&q=a+dog&text*-0.5=snow&id=cat.jpg&where.year.gte=1990&image=rex.jpg
//
// A term is {kind: "text" | "id" | "url" | "image", value, weight}; a name ending in *-0.5 carries the weight.
// An image that was dropped cannot be in an address: only its name is (`dropped=cat.jpg`), while its
// embedding and a small preview live in the entry of this tab's history.

const EMPTY = { view: "search", collection: "", namespace: "default", text: "", terms: [], where: [], image: "",
  sort: "", group: "", collapse: "" };
const TERM = /^(text|id|url|dropped)(?:\*(-?\d+(?:\.\d+)?))?$/;
const WHERE = /^where\.(.+)\.(eq|ne|gte|lte|prefix|exists)$/s;

export const VIEWS = ["search", "map", "collections", "jobs"];

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
  for (const name of ["sort", "group", "collapse", "image"]) if (shown[name]) params.set(name, shown[name]);
  const query = params.toString();
  return query ? `./?${query}` : "./"; // relative: the page may be below a prefix
}

/** `back`: the user went back or forward, so that everything is to be as it was. */
export function readAddress({ back = false } = {}) {
  const params = new URLSearchParams(location.search);
  const dropped = [...(history.state?.dropped ?? [])];
  Object.assign(state, EMPTY, {
    view: VIEWS.includes(params.get("view")) ? params.get("view") : "search",
    collection: params.get("in") ?? "",
    namespace: params.get("namespace") || "default",
    text: params.get("q") ?? "",
    image: params.get("image") ?? "",
    sort: params.get("sort") ?? "",
    group: params.get("group") ?? "",
    collapse: Number(params.get("collapse")) > 0 ? params.get("collapse") : "",
    terms: [],
    where: [],
  });
  for (const [name, value] of params) {
    const term = TERM.exec(name);
    if (term && value) state.terms.push(readTerm(term, value, dropped));
    const where = WHERE.exec(name);
    if (where) state.where.push({ field: where[1], op: where[2], value });
  }
  changed({ back });
}

function readTerm([, name, given], value, dropped) {
  const weight = Number(given ?? 1);
  if (name !== "dropped") return { kind: name, value, weight };
  const known = dropped.findIndex((term) => term.value === value);
  return { kind: "image", value, ...(known < 0 ? {} : dropped.splice(known, 1)[0]), weight };
}

/** Everything looks at what is to be shown, and shows it. */
export function changed(how = {}) {
  for (const listener of listeners) listener(how);
}

history.scrollRestoration = "manual"; // results.js knows where each list was left
addEventListener("popstate", () => readAddress({ back: true }));
