// Asks for what every visit needs while the other scripts are still on their way. It runs before there is a
// document, and imports nothing.

export const KEPT = "clipfleet-key";

const begun = new Map();

/** The path of the first ids of a collection, as they are stored. */
export const idsPath = (name, params) => `v1/collections/${encodeURIComponent(name)}/ids?${new URLSearchParams(params)}`;

/** The answer to a request that was begun here; nothing if it was not, was refused, or was taken before. */
export async function take(path) {
  const coming = begun.get(path);
  begun.delete(path); // before it is here: an answer can be read only once
  const answer = await coming;
  return answer?.ok ? answer : null;
}

/** The key that this tab keeps; "" without, or where the browser keeps nothing for this page. */
export function kept() {
  try {
    return sessionStorage.getItem(KEPT) ?? "";
  } catch {
    return "";
  }
}

function begin(path) {
  const headers = kept() ? { Authorization: `Bearer ${kept()}` } : {};
  begun.set(path, fetch(path, { headers }).catch(() => null));
}

const params = new URLSearchParams(location.search);
begin("v1/collections");
if (params.get("in") && [...params.keys()].every((name) => name === "in")) {
  begin(idsPath(params.get("in"), { namespace: "default", limit: 60, cursor: "" }));
}
