// Which images of a job failed, and why.

import * as api from "./api.js";
import { button, el, fileOf, many } from "./dom.js";

/** A disclosure that asks for the failures when it is opened, and for more on demand. */
export function failuresOf(id) {
  const summary = el("summary");
  const rows = el("tbody");
  const foot = el("div");
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...["Image", "Why", "Tries"].map((name) => el("th", { scope: "col" }, name)))), rows);
  const details = el("details", { class: "failures", hidden: true, ontoggle: () => details.open && !rows.childElementCount && more() }, summary, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Failures" }, table), foot);

  async function more() {
    try {
      const { failures, total } = await api.failures(id, rows.childElementCount);
      rows.append(...failures.map(row));
      const left = total - rows.childElementCount;
      foot.replaceChildren(left > 0 && failures.length ? button(`Show more of ${many(left, "other")}`, more) : "");
    } catch (error) {
      foot.replaceChildren(el("p", { class: "wrong" }, error.message));
    }
  }

  return { details, show: (failed) => {
    details.hidden = !failed;
    summary.textContent = many(failed, "failure");
  } };
}

const row = ({ id, reason, attempts }) => el("tr", {}, el("td", { title: id, class: "name" }, fileOf(id)), el("td", {}, reason), el("td", { class: "number" }, String(attempts)));
