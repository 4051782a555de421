// The API key: asked for when the service wants one, kept in this tab alone, sent with every request.

import { $ } from "./dom.js";
import { KEPT, kept } from "./early.js";

const dialog = $("api-key");

let key = kept();
let asking = null; // what becomes of the open dialog
let declined = false;

/** The one that is used now; "" without. */
export const now = () => key;

export const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});

function keep(given) {
  key = given;
  try {
    if (key) sessionStorage.setItem(KEPT, key);
    else sessionStorage.removeItem(KEPT);
  } catch {
    // the browser keeps nothing for this page: it is used as long as the page stays open
  }
  $("forget-key").hidden = !key;
}

/** The service refused `tried`. Whether there is another one now, to be tried in its place. */
export async function ask(tried, why) {
  if (key !== tried) return true; // somebody else has asked meanwhile
  if (declined) return false;
  asking ??= open(tried, why);
  return asking;
}

/** Who closed the dialog may think better of it. */
export function askAgain() {
  declined = false;
}

function open(tried, why) {
  $("key-problem").textContent = tried ? why : "";
  $("key-input").value = "";
  dialog.showModal();
  $("key-input").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      asking = null;
      declined = key === tried;
      resolve(!declined);
    }, { once: true });
  });
}

$("key-form").addEventListener("submit", () => keep($("key-input").value.trim()));
$("forget-key").addEventListener("click", () => {
  keep("");
  location.reload(); // and with it all that the key has shown
});
keep(key);
