// Many files as a few uploads: each becomes one job, and must stay below the service's limits.

import { folderOf } from "./files.js";

const MOST_FILES = 500;
const MOST_BYTES = 200_000_000;

/** [{label, files: [{file, path}]}]; `labelling`: "", "folder", or "one" with the label itself. */
export function batches(files, labelling, label) {
  const byLabel = new Map();
  for (const one of unique(files)) {
    const its = labelling === "folder" ? folderOf(one.path) : labelling === "one" ? label : "";
    if (!byLabel.has(its)) byLabel.set(its, []);
    byLabel.get(its).push(one);
  }
  return [...byLabel].flatMap(([its, some]) => parts(some).map((part) => ({ label: its, files: part })));
}

/** Names become ids, so that of two files of one path only one can go in. */
const unique = (files) => [...new Map(files.map((one) => [one.path, one])).values()];

function parts(files) {
  const made = [[]];
  let bytes = 0;
  for (const one of files) {
    const full = made.at(-1).length >= MOST_FILES || bytes + one.file.size > MOST_BYTES;
    if (full && made.at(-1).length) {
      made.push([]);
      bytes = 0;
    }
    made.at(-1).push(one);
    bytes += one.file.size;
  }
  return made;
}
