// A question before something is done that cannot be undone.

import { $, button, el, icon } from "./dom.js";

/** Whether the user says yes. `typed`: what has to be typed first. `choices`: [[value, text], …] instead of one
 * button; the answer is then the value, or "". */
export function ask({ title, text, yes, typed = "", choices = null, details = null }) {
  const dialog = el("dialog", { class: "ask", "aria-labelledby": "ask-title" });
  const input = typed ? el("input", { type: "text", autocomplete: "off", spellcheck: "false", "aria-label": `Type ${typed} to go on` }) : null;
  const submits = choices
    ? choices.map(([value, words]) => el("button", { class: "button main", value }, words))
    : [el("button", { class: yes ? "button danger" : "button main", value: "yes", disabled: Boolean(typed) }, yes ?? "OK")];
  const form = el("form", { method: "dialog" },
    el("header", { class: "dialog-head" }, el("h2", { id: "ask-title", tabindex: -1 }, title),
      el("button", { type: "button", class: "plain close", "aria-label": "Close", onclick: () => dialog.close("") }, icon("close"))),
    el("p", {}, text), details,
    input ? el("p", { class: "typed" }, el("label", {}, "Type ", el("b", {}, typed), " to go on", input)) : null,
    el("footer", { class: "dialog-foot" }, yes || choices ? button("Cancel", () => dialog.close("")) : null, ...submits));
  dialog.append(form);
  input?.addEventListener("input", () => {
    submits[0].disabled = input.value.trim() !== typed;
  });
  document.body.append(dialog);
  const before = document.activeElement;
  dialog.showModal();
  (input ?? $("ask-title")).focus();
  return new Promise((resolve) => {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close(""));
    dialog.addEventListener("close", () => {
      dialog.remove();
      before?.focus?.();
      resolve(choices ? dialog.returnValue : dialog.returnValue === "yes");
    });
  });
}
