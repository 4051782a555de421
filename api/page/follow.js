// A stream of server-sent events. Not an EventSource: that one cannot send the key.

import * as key from "./key.js";

/** `on[event](data)` for each; `on.end()` when the stream is over. `close()` ends it. */
export function follow(path, on) {
  const stopped = new AbortController();
  read(path, on, stopped.signal).catch(() => {}).finally(on.end); // whoever wants more opens it again
  return { close: () => stopped.abort() };
}

async function read(path, on, signal) {
  const answer = await fetch(path, { headers: key.headers(), signal });
  if (answer.status !== 200) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const one of events) tell(one, on);
  }
}

function tell(text, on) {
  const fields = Object.fromEntries(text.split("\n").map((line) => line.split(/: ?(.*)/s, 2)));
  if (fields.data && on[fields.event]) on[fields.event](JSON.parse(fields.data));
}
