// The parts of a query as chips: words, images of the collection, dropped images; each with a weight.

import * as api from "./api.js";
import { el, fileOf, icon, nameOf, replaceChildren } from "./dom.js";
import { fill } from "./pictures.js";
import { isMissing } from "./query.js";
import { go, state } from "./state.js";

const LARGEST = 10;

// Measured (docs/search.md): with more, an image drowns what is searched for, and words lose their effect.
const AVOIDED = { text: -0.5, image: -0.2 };

const avoidedWeight = ({ kind }) => (kind === "text" ? AVOIDED.text : AVOIDED.image);

export const addTerm = (term) => go({ terms: [...state.terms, { weight: 1, ...term }], image: "" });
export const avoid = (term) => addTerm({ ...term, weight: avoidedWeight(term) });
export const moreLike = (id) => go({ text: "", terms: [{ kind: "id", value: id, weight: 1 }], image: "", view: "search" });

export function renderTerms(list) {
  const alone = state.terms.length + (state.text ? 1 : 0) === 1;
  replaceChildren(list, state.terms.map((term, place) => chip(term, place, alone)));
}

function chip(term, place, alone) {
  const name = term.kind === "id" ? nameOf(term.value) : term.kind === "url" ? fileOf(term.value) : term.value;
  const avoided = term.weight < 0;
  return el("li", { class: `chip${avoided ? " avoided" : ""}${isMissing(term) ? " missing" : ""}` },
    sign(term, place, name),
    picture(term),
    el("span", { class: "what", title: about(term) }, name),
    alone && !avoided ? null : weight(term, place, name),
    el("button", {
      type: "button", class: "remove", "data-key": `remove-${place}`, "aria-label": `Remove ${name}`,
      onclick: () => go({ terms: state.terms.filter((_, other) => other !== place) }),
    }, icon("close")));
}

function about(term) {
  if (isMissing(term)) return `${term.value}: a link cannot carry an image. Drop it again to search by it.`;
  return term.kind === "image" ? `${term.value}: stays in this tab, a link cannot carry it` : term.value;
}

function sign(term, place, name) {
  const avoided = term.weight < 0;
  return el("button", {
    type: "button", class: "sign", "data-key": `sign-${place}`, "aria-pressed": String(avoided),
    "aria-label": `Not ${name}`,
    title: avoided ? `Less of this, with the weight ${Math.abs(term.weight)}; press for more of it` : "More of this; press for less of it",
    onclick: () => change(place, { weight: turned(term) }),
  }, icon(avoided ? "minus" : "plus"));
}

/** The other sign; what has its usual weight gets the usual one. */
function turned(term) {
  if (term.weight === 1) return avoidedWeight(term);
  return term.weight === avoidedWeight(term) ? 1 : -term.weight;
}

function picture(term) {
  if (term.kind === "url") return icon("image");
  if (term.kind !== "id" && !term.preview) return null;
  const small = el("img", { alt: "", width: 20, height: 20 });
  if (term.kind === "id") fill(small, api.thumbnail(state.collection, term.value, state.namespace));
  else small.src = term.preview;
  return small;
}

function weight(term, place, name) {
  return el("input", {
    type: "number", class: "weight", "data-key": `weight-${place}`, "aria-label": `Weight of ${name}`,
    min: 0.05, max: LARGEST, step: 0.05, value: Math.abs(term.weight), title: "Weight",
    onchange: ({ target }) => {
      const size = Math.min(LARGEST, Math.abs(Number(target.value)) || 1);
      change(place, { weight: Math.sign(term.weight) * size });
    },
  });
}

function change(place, changes) {
  const terms = state.terms.map((term, other) => (other === place ? { ...term, ...changes } : term));
  go({ terms }, { replace: true });
}
