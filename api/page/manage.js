// The collections: what there is, making one, deleting one.

import * as api from "./api.js";
import { ask } from "./ask.js";
import * as collections from "./collections.js";
import { $, ago, announce, button, count, el, icon, many, message, when } from "./dom.js";
import * as migrations from "./migrations.js";
import { go, href, state } from "./state.js";

const FIELD_TYPES = ["string", "int", "float", "bool", "string[]", "int[]"];

const form = $("collection-form");

let trouble = "";
let aliases = [];

/** Ask for the list now. */
export async function look() {
  try {
    trouble = "";
    await collections.load();
    aliases = await api.aliases();
  } catch (error) {
    trouble = error.message;
  }
  render();
}

export function render() {
  if (state.view !== "collections") return;
  const all = collections.all();
  const focused = document.activeElement?.closest("[data-collection]")?.dataset.collection;
  $("collections").replaceChildren(...(all ?? []).map(row));
  if (focused) $("collections").querySelector(`[data-collection="${CSS.escape(focused)}"] a`)?.focus();
  $("models").replaceChildren(...[...new Set((all ?? []).map(({ model }) => model))].map((value) => el("option", { value })));
  if (trouble) $("collections-more").replaceChildren(el("p", { class: "wrong" }, trouble), button("Ask again", look));
  else if (all?.length === 0) $("collections-more").replaceChildren(message("No collection yet", "Images are added to a collection. Each has one model and one metric."));
  else $("collections-more").replaceChildren();
}

function row(collection) {
  const { name, model, metric, dim, fields, count: images, created_at: created } = collection;
  const link = el("a", { class: "button quiet", "data-view": "search",
    href: href({ view: "search", collection: name, namespace: "default", text: "", terms: [], where: [], image: "" }) }, "Show images");
  const shown = el("div", { hidden: true });
  const compare = button("Migration", () => showMigration(collection, compare, shown), { class: "button quiet", "aria-expanded": "false" });
  const trash = button("Delete", () => remove(collection), { class: "button quiet needs-admin" });
  const declared = Object.entries(fields);
  const further = aliases.filter((alias) => alias.collection === name).map((alias) => alias.name);
  return el("li", { class: "job", "data-collection": name },
    el("div", { class: "job-head" }, el("b", {}, name), el("span", { class: "muted number" }, many(images, "image")),
      el("time", { class: "muted", title: when(created) }, ago(created)), el("span", { class: "actions" }, link, ...(collection.migration ? [compare] : []), trash)),
    el("dl", { class: "known" },
      ...(further.length ? [el("dt", {}, "aliases"), el("dd", {}, further.join(", "))] : []),
      el("dt", {}, "model"), el("dd", {}, model),
      el("dt", {}, "metric"), el("dd", {}, `${metric}, ${count(dim)} numbers`),
      el("dt", {}, "fields"), el("dd", {}, declared.length ? declared.map(([field, type]) => `${field} (${type})`).join(", ") : "none declared")), shown);
}

async function showMigration(collection, control, place) {
  if (!place.hidden) {
    place.hidden = true;
  } else {
    try {
      place.replaceChildren(await migrations.details(collection));
    } catch (error) {
      place.replaceChildren(el("p", { class: "wrong" }, error.message));
    }
    place.hidden = false;
  }
  control.setAttribute("aria-expanded", String(!place.hidden));
}

async function remove({ name, count: images }) {
  const sure = await ask({
    title: `Delete ${name}?`,
    text: `Its ${many(images, "image")} go with their metadata and thumbnails, and jobs that add to it are cancelled. The files that they came from stay where they are. This cannot be undone.`,
    yes: "Delete the collection",
    typed: name,
  });
  if (!sure) return;
  try {
    await api.deleteCollection(name);
    announce(`${name} is deleted`);
    if (state.collection === name) go({ collection: "", where: [], terms: [], text: "", image: "" }, { replace: true });
  } catch (error) {
    trouble = error.message;
    render();
    return;
  }
  await look();
  go({}, { replace: true });
}

// A new one

function show(open) {
  form.hidden = !open;
  $("new-collection").setAttribute("aria-expanded", String(open));
  $("collection-problem").textContent = "";
  if (open) $("collection-name").focus();
  else $("new-collection").focus();
}

function addField() {
  const name = el("input", { type: "text", required: true, maxlength: 63, "aria-label": "Name of the field", placeholder: "year", autocomplete: "off", spellcheck: "false" });
  const type = el("select", { "aria-label": "Type of the field" }, ...FIELD_TYPES.map((one) => el("option", {}, one)));
  const item = el("li", {}, name, type, el("button", { type: "button", class: "plain", "aria-label": "Remove this field", onclick: () => {
    item.remove();
    $("add-field").focus();
  } }, icon("close")));
  $("collection-fields").append(item);
  name.focus();
}

async function create(event) {
  event.preventDefault();
  const name = $("collection-name").value.trim();
  const model = $("collection-model").value.trim();
  const fields = {};
  for (const item of $("collection-fields").children) fields[item.querySelector("input").value.trim()] = item.querySelector("select").value;
  $("collection-problem").textContent = "";
  if (collections.all()?.some((one) => one.name === name)) {
    $("collection-problem").textContent = `There is a collection ${name} already.`;
    return;
  }
  $("collection-create").disabled = true;
  try {
    await api.makeCollection(name, { metric: $("collection-metric").value, fields, ...(model ? { model } : {}) });
    form.reset();
    $("collection-fields").replaceChildren();
    show(false);
    announce(`${name} is made`);
    await look();
    $("collections").querySelector(`[data-collection="${CSS.escape(name)}"] a`)?.focus();
  } catch (error) {
    $("collection-problem").textContent = error.message;
  }
  $("collection-create").disabled = false;
}

$("new-collection").addEventListener("click", () => show(form.hidden));
$("collection-cancel").addEventListener("click", () => show(false));
$("add-field").addEventListener("click", addField);
form.addEventListener("submit", create);
form.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  event.preventDefault();
  event.stopPropagation();
  show(false);
});
