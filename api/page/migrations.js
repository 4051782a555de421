// A migration of a collection to another model: how far it is, and what the two models find.

import * as api from "./api.js";
import { ago, el, many } from "./dom.js";
import { thumbnail } from "./tiles.js";

const STATES = {
  building: "images are copied",
  ready: "all images are copied; nothing is swapped yet",
  paused: "paused",
  swapped: "searches are answered by the new model; it can be rolled back",
};

/** What is shown below a collection that has a migration. Asks the service. */
export async function details({ name }) {
  const migration = await api.migration(name);
  const { old, new: other, state, comparison } = migration;
  return el("div", { class: "migration" },
    el("p", {}, el("b", {}, `From ${old.model} to ${other.model}: `), STATES[state] ?? state,
      migration.missing ? `; ${many(migration.missing, "image")} to copy` : "",
      migration.unreadable ? `; ${many(migration.unreadable, "image")} cannot be read any more` : "",
      migration.eta_s ? `; about ${Math.ceil(migration.eta_s / 60)} min left` : ""),
    migration.error || migration.waiting ? el("p", { class: "wrong" }, migration.error || migration.waiting) : null,
    comparison?.queries ? figures(comparison) : null,
    ...(comparison ? comparison.examples.map((example) => sideBySide(name, example, old, other)) : []));
}

const share = (value) => `${Math.round(100 * value)} %`;

function figures(comparison) {
  const labels = comparison.labelled
    ? ` Of the ten nearest images, ${share(comparison.precision_at_10_old)} have the label of the query with the old model, ${share(comparison.precision_at_10_new)} with the new one.`
    : "";
  return el("p", {}, `With ${many(comparison.queries, "stored image")} as queries, both models have ${share(comparison.overlap_at_10)} of the ten nearest images in common.${labels} Measured ${ago(comparison.measured_at)}.`);
}

function sideBySide(collection, { id, namespace, old: before, new: after }, old, other) {
  const side = (title, ids) => el("div", { class: "side" }, el("span", { class: "muted" }, title),
    el("ol", { role: "list", class: "strip" }, ...ids.map((each) => el("li", { title: each }, small(collection, namespace, each)))));
  return el("div", { class: "compared" },
    el("div", { class: "side" }, el("span", { class: "muted" }, "query"),
      el("ol", { role: "list", class: "strip" }, el("li", { title: id }, small(collection, namespace, id)))),
    side(old.model, before), side(other.model, after));
}

const small = (collection, namespace, id) => thumbnail({ id, collection, namespace }, true);
