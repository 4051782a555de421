// Files that were chosen, dropped or pasted, and the folders they are in.

const IMAGE = /\.(jpe?g|jfif|png|webp|gif|bmp|tiff?|avif|mpo)$/i;

export const looksLikeImage = (file) => (file.type ? file.type.startsWith("image/") : IMAGE.test(file.name));

/** An address on the web, and nothing else. Whether there is an image is for the service to find out. */
export const isImageUrl = (text) => /^https?:\/\/\S+$/i.test(text);

/** [{file, path}] of an <input type="file">; the path below a chosen folder. */
export const chosen = (input) => [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

/** [{file, path}] of a drop, however deep its folders are. To be called while the event is handled. */
export function dropped(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  return Promise.all(entries.filter(Boolean).map(below)).then((found) => found.flat());
}

async function below(entry) {
  if (entry instanceof File) return [{ file: entry, path: entry.name }];
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: entry.fullPath.replace(/^\//, "") }];
  }
  const found = [];
  for (const one of await children(entry.createReader())) found.push(...(await below(one)));
  return found;
}

/** Browsers hand out a folder a hundred entries at a time. */
async function children(reader) {
  const all = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return all;
    all.push(...some);
  }
}

/** `.jpg` of `fox.JPG`; nothing for a name without a dot. */
export const endingOf = (name) => (name.includes(".") ? name.slice(name.lastIndexOf(".")).toLowerCase() : "");

/** `animals` of `photos/animals/fox.png`; nothing for a file in no folder. */
export const folderOf = (path) => path.split("/").slice(-2, -1)[0] ?? "";
