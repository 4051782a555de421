// Starts the page: who is told of a change, the views, the keys.

import * as bar from "./bar.js";
import * as collections from "./collections.js";
import * as detail from "./detail.js";
import { $ } from "./dom.js";
import "./drop.js";
import * as filters from "./filters.js";
import * as jobs from "./jobs.js";
import * as results from "./results.js";
import { asksNothing } from "./query.js";
import * as manage from "./manage.js";
import * as map from "./map.js";
import "./select.js";
import { go, href, onChange, readAddress, state, VIEWS } from "./state.js";
import "./upload.js";
import * as viewing from "./view.js";

let view = "";

function renderView() {
  if (view === "search" && state.view !== "search") results.leave();
  for (const name of VIEWS) {
    $(`${name}-view`).hidden = state.view !== name;
    const link = $(`to-${name}`);
    link.href = href({ view: name, image: "" });
    if (state.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  $("home").href = href({ view: "search", text: "", terms: [], where: [], image: "" });
  document.title = titleOf();
  if (state.view === view) return;
  if (view && state.view === "search") results.comeBack();
  view = state.view;
  if (view === "jobs") jobs.look();
  if (view === "collections") manage.look();
  if (view === "map" && collections.all()) map.open();
}

function titleOf() {
  if (state.view === "jobs") return "Jobs · clipfleet";
  if (state.view === "map") return ["Map", state.collection, "clipfleet"].filter(Boolean).join(" · ");
  if (state.view === "collections") return "Collections · clipfleet";
  return [state.text, state.collection, "clipfleet"].filter(Boolean).join(" · ");
}

onChange((how) => {
  renderView();
  collections.render();
  bar.render();
  filters.render();
  viewing.render();
  manage.render();
  if (collections.all()) map.render();
  jobs.render();
  if (state.view === "search") results.render(how);
  detail.render();
});

/** Links to our own views change the page without loading it. */
document.addEventListener("click", (event) => {
  const link = event.target.closest("#to-search, #to-map, #to-collections, #to-jobs, #home, a[data-view]");
  if (!link || event.defaultPrevented || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  history.pushState(history.state, "", link.href);
  readAddress();
});

document.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("words").focus();
    $("words").select();
  } else if (event.key === "?" && !typing) {
    showHelp();
  } else if (event.key === "ArrowDown" && (event.target === $("words") || event.target === document.body)) {
    event.preventDefault();
    document.querySelector('#grid a[tabindex="0"], #grid a')?.focus();
  } else if (event.key === "Escape" && !typing && !event.defaultPrevented && !asksNothing(state)) {
    go({ text: "", terms: [] });
  }
});

function showHelp() {
  $("keys").showModal();
  $("keys-title").focus();
}

$("help").addEventListener("click", showHelp);
for (const dialog of [$("keys"), $("upload"), $("api-key")]) {
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

jobs.onEnd(async (job) => {
  if (job.collection !== state.collection) return;
  if (asksNothing(state) && scrollY < innerHeight) await results.refresh();
  else await collections.load().catch(results.fail);
});

jobs.onNews(results.jobsChanged);
readAddress();
await results.refresh();
go({}, { replace: true }); // the address names the collection that was chosen
jobs.look();
