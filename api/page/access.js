// What the key of this tab may do. Without keys everybody may do everything.

import * as api from "./api.js";
import { $ } from "./dom.js";

let scopes = null; // until the service has answered

/** `need`: "read", "write" or "admin". Until it is known, everything: the service refuses what must not be. */
export const may = (need) => !scopes || scopes.includes(need);

/** Ask the service, as long as it has not answered. A gateway of the release before does not know. */
export async function load() {
  if (scopes) return;
  ({ scopes } = await api.ownKey().catch(() => ({ scopes: null })));
  document.documentElement.classList.toggle("read-only", !may("write"));
  document.documentElement.classList.toggle("no-admin", !may("admin"));
  $("add").hidden = !may("write");
}
