// A zip of images, made here: the files are fetched one after the other and stored as they are.
//
// Each file is handed to the browser as a blob, which it may keep on the disk; this page holds one file at a
// time for each of a few requests. A zip of more than PART_BYTES is begun anew under another name.

import * as api from "./api.js";
import { fileName, pathOf, save } from "./originals.js";

const AT_ONCE = 3;
const PART_BYTES = 1_000_000_000;
const TRIES = 5;
const TEXT = new TextEncoder();
const UTF8 = 0x800; // flag: names are UTF-8

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function crcOf(chunk, before) {
  let crc = before;
  for (const byte of chunk) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return crc;
}

/** Save the originals of `ids` as one zip or more. `progress(done)` after each.
 *
 * The answer: {saved, zips, left: [{id, reason}]}. What is left out is also named in the zip. */
export async function saveZip(ids, name, { progress, signal }) {
  const left = [];
  let archive = new Archive();
  let saved = 0;
  let zips = 0;
  let done = 0;
  const finish = (last) => {
    if (last && left.length && saved) archive.add(textFile("left-out.txt", left.map(({ id, reason }) => `${id}\t${reason}\n`).join("")));
    if (!archive.files) return;
    zips += 1;
    save(archive.blob(), last && zips === 1 ? `${name}.zip` : `${name}-${zips}.zip`);
    archive = new Archive();
  };
  const waiting = ids.values();
  const one = async () => {
    for (const id of waiting) {
      try {
        const file = await fetched(id, signal);
        if (archive.bytes + file.bytes > PART_BYTES) finish(false);
        archive.add(file);
        saved += 1;
      } catch (error) {
        if (error.name === "AbortError") throw error;
        left.push({ id, reason: error.message });
      }
      progress(done += 1);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, one));
  finish(true);
  return { saved, zips, left };
}

async function fetched(id, signal) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      const answer = await api.open(pathOf(id), { signal });
      return await read(answer, fileName(id, answer.headers.get("Content-Type")));
    } catch (error) {
      if (error.name === "AbortError" || attempt >= TRIES || error.passing === false) throw error;
      await pause(error.retryAfter || attempt, signal);
    }
  }
}

async function read(answer, name) {
  const chunks = [];
  let crc = -1;
  let bytes = 0;
  for (const reader = answer.body.getReader(); ;) {
    const { value, done } = await reader.read();
    if (done) break;
    crc = crcOf(value, crc);
    bytes += value.length;
    chunks.push(value);
  }
  const written = new Date(answer.headers.get("Last-Modified") ?? Date.now());
  return { name, crc: ~crc >>> 0, bytes, content: new Blob(chunks), written };
}

function textFile(name, text) {
  const content = TEXT.encode(text);
  return { name, crc: ~crcOf(content, -1) >>> 0, bytes: content.length, content, written: new Date() };
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    }, { once: true });
  });
}

class Archive {
  #parts = [];
  #entries = [];
  #names = new Set();
  bytes = 0;

  get files() {
    return this.#entries.length;
  }

  add({ name, crc, bytes, content, written }) {
    const stored = TEXT.encode(this.#free(name));
    const fields = [UTF8, 0, timeOf(written), dateOf(written)];
    const sizes = [crc, bytes, bytes];
    const head = record(0x04034b50, [20, ...fields], sizes, [stored.length, 0]);
    const entry = record(0x02014b50, [20, 20, ...fields], sizes, [stored.length, 0, 0, 0, 0], [0, this.bytes]);
    this.#entries.push(entry, stored);
    this.#parts.push(head, stored, content);
    this.bytes += head.length + stored.length + bytes;
  }

  blob() {
    const count = this.#entries.length / 2;
    const size = this.#entries.reduce((sum, { length }) => sum + length, 0);
    const end = record(0x06054b50, [0, 0, count, count], [size, this.bytes], [0]);
    return new Blob([...this.#parts, ...this.#entries, end], { type: "application/zip" });
  }

  /** A name that no other file of the zip has: `cat (2).jpg`. */
  #free(name) {
    const dot = name.lastIndexOf(".");
    const [stem, ending] = dot > 0 ? [name.slice(0, dot), name.slice(dot)] : [name, ""];
    let free = name;
    for (let n = 2; this.#names.has(free.toLowerCase()); n += 1) free = `${stem} (${n})${ending}`;
    this.#names.add(free.toLowerCase());
    return free;
  }
}

/** A record of a zip: its mark, and numbers of two and four bytes in turn. */
function record(mark, ...groups) {
  const made = [number(mark, 4)];
  groups.forEach((values, place) => made.push(...values.map((value) => number(value, place % 2 ? 4 : 2))));
  return Uint8Array.from(made.flat());
}

const number = (value, bytes) => Array.from({ length: bytes }, (_, n) => Math.floor(value / 256 ** n) % 256);
const timeOf = (at) => (at.getHours() << 11) | (at.getMinutes() << 5) | (at.getSeconds() >> 1);
const dateOf = (at) => (Math.max(0, at.getFullYear() - 1980) << 9) | ((at.getMonth() + 1) << 5) | at.getDate();
