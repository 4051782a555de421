// Many files as a few requests of one upload; each must stay below the service's limits.

import { folderOf } from "./files.js";

const MOST_FILES = 500;
const MOST_BYTES = 200_000_000;

/** [{bytes, files: [{file, id, label}]}]; `labelling`: "", "folder", or "one" with the label itself. */
export function batches(files, labelling, label) {
  const labelOf = ({ path }) => (labelling === "folder" ? folderOf(path) : labelling === "one" ? label : "");
  return parts(named(files).map((one) => ({ ...one, label: labelOf(one) })));
}

/**
 * Files with ids: their paths. A file that was chosen twice goes in once. Of two files of one path, which
 * is a mere name when they were not chosen as a folder, the second one is called `name (2)`.
 */
function named(files) {
  const byId = new Map();
  for (const { file, path } of files) {
    let id = path;
    for (let number = 2; byId.has(id) && !same(byId.get(id).file, file); number += 1) id = numbered(path, number);
    if (!byId.has(id)) byId.set(id, { file, path, id });
  }
  return [...byId.values()];
}

const same = (one, other) => one === other || (one.size === other.size && one.lastModified === other.lastModified);

function numbered(path, number) {
  const dot = path.lastIndexOf(".");
  return dot > path.lastIndexOf("/") + 1 ? `${path.slice(0, dot)} (${number})${path.slice(dot)}` : `${path} (${number})`;
}

function parts(files) {
  const made = [];
  for (const one of files) {
    const last = made.at(-1);
    if (last && last.files.length < MOST_FILES && last.bytes + one.file.size <= MOST_BYTES) {
      last.files.push(one);
      last.bytes += one.file.size;
    } else {
      made.push({ files: [one], bytes: one.file.size });
    }
  }
  return made;
}
