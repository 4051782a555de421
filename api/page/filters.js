// Conditions on labels and on fields, declared or not.

import { current } from "./collections.js";
import { $, el, icon, replaceChildren } from "./dom.js";
import * as fields from "./fields.js";
import { describe, kindOf, OPERATORS, operatorsFor } from "./query.js";
import { go, state } from "./state.js";
import { chips as viewChips } from "./view.js";

const form = $("filter-form");
const select = $("filter-op");

export function render() {
  replaceChildren($("filters"), [...state.where.map(chip), ...(state.namespace === "default" ? [] : [namespaceChip()]), ...viewChips(removable)]);
  $("add-filter").disabled = !current();
  $("namespace").value = state.namespace;
  if (!form.hidden) renderForm();
}

function chip(condition, place) {
  const text = describe(condition);
  return removable(text, place, () => go({ where: state.where.filter((_, other) => other !== place) }), `Remove the filter ${text}`);
}

const namespaceChip = () => removable(`namespace ${state.namespace}`, "namespace", () => go({ namespace: "default" }));

function removable(text, key, onclick, label = `Remove ${text}`) {
  return el("li", { class: "chip" }, el("span", { class: "what", title: text }, text),
    el("button", { type: "button", class: "remove", "data-key": `where-${key}`, "aria-label": label, onclick }, icon("close")));
}

function renderForm() {
  if (!current()) return;
  const names = fields.names();
  const field = $("filter-field");
  if ([...field.options].map((one) => one.value).join() !== names.join()) {
    const before = field.value;
    field.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    if (names.includes(before)) field.value = before;
  }
  renderCondition();
}

function renderCondition() {
  const kind = kindOf($("filter-field").value, current());
  const before = select.value;
  const operators = operatorsFor(kind);
  select.replaceChildren(...operators.map((op) => el("option", { value: op }, OPERATORS[op])));
  if (operators.includes(before)) select.value = before;
  renderValue(kind);
  suggest();
}

function renderValue(kind) {
  const choice = select.value === "exists" || kind === "bool";
  const before = $("filter-value").querySelector("input");
  if (!choice && before && before.dataset.kind === kind) return; // what is being typed stays
  $("filter-value").replaceChildren(choice ? yesOrNo() : input(kind));
}

const yesOrNo = () => el("select", { name: "value" }, el("option", { value: "true" }, "yes"), el("option", { value: "false" }, "no"));

function input(kind) {
  const common = { name: "value", required: true, "data-kind": kind };
  if (["int", "int[]", "float"].includes(kind)) return el("input", { ...common, type: "number", step: kind === "float" ? "any" : 1 });
  return el("input", { ...common, type: "text", maxlength: 1024, list: "values", autocomplete: "off" });
}

/** The values that images have: those seen at once, others when the service has answered. */
async function suggest() {
  const field = $("filter-field").value;
  offer(field);
  await fields.lookFor(field);
  if ($("filter-field").value === field) offer(field);
}

function offer(field) {
  $("values").replaceChildren(...fields.valuesOf(field).map((value) => el("option", { value: String(value) })));
}

function show(open) {
  form.hidden = !open;
  $("add-filter").setAttribute("aria-expanded", String(open));
  if (open) renderForm();
  if (open) $("filter-field").focus();
}

$("add-filter").addEventListener("click", () => show(form.hidden));
$("filter-field").addEventListener("change", () => {
  $("filter-value").replaceChildren();
  renderCondition();
});
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
  $("filter-value").replaceChildren();
  $("add-filter").focus();
  go({ where: [...state.where.filter((one) => describe(one) !== describe(condition)), condition] });
});
