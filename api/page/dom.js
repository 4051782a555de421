// Making elements and words. Text only ever becomes text: nothing here takes markup.

export const $ = (id) => document.getElementById(id);

/** `el("a", {href, class: "x", onclick}, "text", child)`; attributes that are null or false are left out. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An icon of the sprite in index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** New children, the focus where it was: on the element of the same `data-key`. */
export function replaceChildren(parent, children) {
  const key = parent.contains(document.activeElement) && document.activeElement.dataset.key;
  parent.replaceChildren(...children);
  if (key) parent.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** Said by screen readers when they next pause. */
export function announce(text) {
  $("said").textContent = text;
}

/** What is in the middle of an otherwise empty view. */
export function message(title, text, ...actions) {
  return el("div", { class: "message" }, el("h2", {}, title), el("p", {}, text),
    actions.length ? el("p", { class: "actions" }, ...actions) : null);
}

export const button = (text, onclick, attributes = {}) =>
  el("button", { type: "button", class: "button", onclick, ...attributes }, text);

export const count = (number) => number.toLocaleString("en");
export const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;
export const score = (number) => (Math.abs(number) >= 1000 ? number.toPrecision(4) : number.toFixed(3));

/** `red-fox.png` of `/data/animals/red-fox.png`. */
export const fileOf = (id) => id.split(/[/\\]/).filter(Boolean).pop() ?? id;

/** `red-fox` of it. */
export function nameOf(id) {
  return fileOf(id).replace(/\.(jpe?g|png|webp|gif|bmp|tiff?|avif)$/i, "") || id;
}

/** The end of a name differs more often than its middle: two elements, the first of which is cut off. */
export function cutInTheMiddle(name) {
  const kept = Math.min(6, Math.floor(name.length / 2));
  const at = name.length - kept;
  return [el("span", { class: "start" }, name.slice(0, at)), el("span", { class: "end" }, name.slice(at))];
}

/** With the full stop that it may lack. */
export const sentence = (text) => (/[.!?:…]$/.test(text.trim()) ? text.trim() : `${text.trim()}.`);

export function bytes(number) {
  const units = ["bytes", "kB", "MB", "GB"];
  const power = Math.min(3, Math.floor(Math.log10(Math.max(1, number)) / 3));
  return `${power ? (number / 1000 ** power).toFixed(1) : number} ${units[power]}`;
}

export function seconds(number) {
  if (number < 1) return "less than a second";
  if (number < 90) return `${Math.round(number)} s`;
  if (number < 5400) return `${Math.round(number / 60)} min`;
  return number < 172800 ? `${(number / 3600).toFixed(1)} h` : `${Math.round(number / 86400)} days`;
}

export const when = (unix) => new Date(unix * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

export function ago(unix) {
  const passed = Date.now() / 1000 - unix;
  if (passed < 45) return "just now";
  return `${seconds(passed)} ago`;
}
