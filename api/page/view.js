// How images are listed: in which order, how many of a kind, with or without near-duplicates.

import { current } from "./collections.js";
import { $, el } from "./dom.js";
import * as fields from "./fields.js";
import { asksNothing } from "./query.js";
import { go, state } from "./state.js";

const NEAR = "0.97"; // docs/search.md: copies of an image have this cosine, and more
const form = $("view-form");

const NAMES = { "": "any order", id: "name", "-id": "name, from the end", "-indexed_at": "newest first", indexed_at: "oldest first", label: "label" };

const nameOfSort = (sort) => NAMES[sort] ?? (sort.startsWith("-") ? `${sort.slice(1)}, largest first` : sort);

export function render() {
  $("change-view").disabled = !current();
  renderSort();
  if (form.hidden) return;
  choose($("group"), [["", "no groups"], ...groupable().map((name) => [name, `one for each ${name}`])], state.group);
  choose($("near"), [["", "shown"], [NEAR, "left out"], ["0.9", "left out, and similar ones"]], state.collapse);
}

/** Answers to a query are sorted by how near they are: there is nothing to choose. */
function renderSort() {
  const free = asksNothing(state) && !state.group && !state.collapse;
  $("sort-row").hidden = !free || !current()?.count;
  if (!free || !current()) return;
  const others = sortable().flatMap((name) => [name, `-${name}`]);
  choose($("sort"), [...Object.keys(NAMES), ...others].map((sort) => [sort, nameOfSort(sort)]), state.sort);
}

const isList = (name) => (current()?.fields[name] ?? "").endsWith("[]");
const groupable = () => fields.names().filter((name) => !["id", "uri", "bytes"].includes(name) && !isList(name));
const sortable = () => fields.names().filter((name) => !["label", "id"].includes(name) && !isList(name));

/** New options, if they are others; a value that is not among them gets one. */
function choose(select, options, value) {
  const all = options.some(([one]) => one === value) ? options : [...options, [value, nameOfSort(value)]];
  if ([...select.options].map((one) => one.value).join("\n") !== all.map(([one]) => one).join("\n")) {
    select.replaceChildren(...all.map(([one, name]) => el("option", { value: one }, name)));
  }
  select.value = value;
}

/** What is not as usual, as chips that undo it. `removable` as in filters.js. */
export function chips(removable) {
  const made = [];
  if (state.group) made.push(removable(`one for each ${state.group}`, "group", () => go({ group: "" })));
  if (state.collapse) made.push(removable("without near-duplicates", "collapse", () => go({ collapse: "" })));
  return made;
}

function show(open) {
  form.hidden = !open;
  $("change-view").setAttribute("aria-expanded", String(open));
  render();
  if (open) $("group").focus();
}

$("change-view").addEventListener("click", () => show(form.hidden));
$("sort").addEventListener("change", ({ target }) => go({ sort: target.value }));
$("group").addEventListener("change", ({ target }) => go({ group: target.value }));
$("near").addEventListener("change", ({ target }) => go({ collapse: target.value }));
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  event.preventDefault();
  show(false);
  $("change-view").focus();
});
