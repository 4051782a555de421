// Conditions on labels and on the fields that the collection declares.

import { current } from "./collections.js";
import { $, el, icon, replaceChildren } from "./dom.js";
import { describe, fieldsOf, kindOf, OPERATORS, operatorsFor } from "./query.js";
import { go, state } from "./state.js";

const form = $("filter-form");

export function render() {
  replaceChildren($("filters"), state.where.map(chip));
  if (state.namespace !== "default") $("filters").append(namespaceChip());
  $("add-filter").disabled = !current();
  $("namespace").value = state.namespace;
  if (!form.hidden) renderForm();
}

function chip(condition, place) {
  const text = describe(condition);
  return removable(text, place, () => go({ where: state.where.filter((_, other) => other !== place) }));
}

const namespaceChip = () => removable(`namespace ${state.namespace}`, "namespace", () => go({ namespace: "default" }));

function removable(text, key, onclick) {
  return el("li", { class: "chip" }, el("span", { class: "what", title: text }, text),
    el("button", { type: "button", class: "remove", "data-key": `where-${key}`, "aria-label": `Remove the filter ${text}`, onclick }, icon("close")));
}

function renderForm() {
  if (!current()) return;
  const names = Object.keys(fieldsOf(current()));
  const select = $("filter-field");
  if ([...select.options].map((one) => one.value).join() !== names.join()) {
    select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  }
  renderCondition();
}

function renderCondition() {
  const kind = kindOf($("filter-field").value, current());
  const select = $("filter-op");
  const before = select.value;
  const operators = operatorsFor(kind);
  select.replaceChildren(...operators.map((op) => el("option", { value: op }, OPERATORS[op])));
  if (operators.includes(before)) select.value = before;
  renderValue(kind);
}

function renderValue(kind) {
  const choice = select.value === "exists" || kind === "bool";
  $("filter-value").replaceChildren(choice ? yesOrNo() : input(kind));
}

const select = $("filter-op");
const yesOrNo = () => el("select", { name: "value" }, el("option", { value: "true" }, "yes"), el("option", { value: "false" }, "no"));

function input(kind) {
  if (kind === "string") {
    const list = $("filter-field").value === "label" ? "labels" : null;
    return el("input", { name: "value", type: "text", required: true, maxlength: 1024, list });
  }
  return el("input", { name: "value", type: "number", required: true, step: kind === "int" ? 1 : "any" });
}

function show(open) {
  form.hidden = !open;
  $("add-filter").setAttribute("aria-expanded", String(open));
  if (open) renderForm();
  if (open) $("filter-field").focus();
}

$("add-filter").addEventListener("click", () => show(form.hidden));
$("filter-field").addEventListener("change", renderCondition);
select.addEventListener("change", () => renderValue(kindOf($("filter-field").value, current())));
$("namespace").addEventListener("change", ({ target }) => go({ namespace: target.value.trim() || "default" }));
form.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  event.preventDefault();
  show(false);
  $("add-filter").focus();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const value = new FormData(form).get("value");
  const condition = { field: $("filter-field").value, op: select.value, value: String(value).trim() };
  show(false);
  $("add-filter").focus();
  go({ where: [...state.where.filter((one) => describe(one) !== describe(condition)), condition] });
});
