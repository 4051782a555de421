// The collections there are, and the one that is looked at.

import * as api from "./api.js";
import { $, count, el } from "./dom.js";
import { go, state } from "./state.js";

const REMEMBERED = "clipfleet-collection";

let known = null; // until the service has answered

export const current = () => known?.find((one) => one.name === state.collection);
export const all = () => known;

/** Ask the service anew. Chooses one when the address names none: the last one here, or the largest. */
export async function load() {
  known = await api.collections();
  known.sort((a, b) => a.name.localeCompare(b.name));
  if (!state.collection && known.length) state.collection = favourite().name;
  render();
}

function favourite() {
  const last = known.find((one) => one.name === remembered());
  return last ?? known.reduce((largest, one) => (one.count > largest.count ? one : largest));
}

function remembered() {
  try {
    return localStorage.getItem(REMEMBERED);
  } catch {
    return null; // the browser keeps nothing for this page
  }
}

function remember(name) {
  try {
    localStorage.setItem(REMEMBERED, name);
  } catch {
    // see above
  }
}

/** Make the collection if there is none of this name. */
export async function require(name) {
  if (known?.some((one) => one.name === name)) return;
  await api.makeCollection(name);
  await load();
}

export function choose(name) {
  remember(name);
  go({ collection: name, where: [], terms: state.terms.filter((term) => term.kind === "text"), image: "" });
}

export function render() {
  if (!known) return;
  const options = known.map(({ name, count: images }) => el("option", { value: name }, `${name} · ${count(images)}`));
  const lost = state.collection && !current();
  if (lost) options.unshift(el("option", { value: state.collection }, `${state.collection} · not here`));
  if (!options.length) options.push(el("option", { value: "" }, "no collection yet"));
  $("collection").replaceChildren(...options);
  $("collection").value = state.collection;
  $("collection").disabled = !known.length;
  $("collection-names").replaceChildren(...known.map(({ name }) => el("option", { value: name })));
}

$("collection").addEventListener("change", (event) => choose(event.target.value));
