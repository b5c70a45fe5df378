// What was dropped, with folders walked through: names of folders are classes.

/** label: the class that a folder's name tells; null for none. */
export interface Given {
  file: File;
  label: string | null;
}

function readEntries(folder: FileSystemDirectoryEntry): Promise<FileSystemEntry[]> {
  const reader = folder.createReader();
  const found: FileSystemEntry[] = [];
  // A reader hands out a hundred or so at a time, and then nothing.
  const more = (): Promise<FileSystemEntry[]> =>
    new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject)).then(
      (some) => {
        found.push(...some);
        return some.length ? more() : found;
      },
    );
  return more();
}

async function walk(entry: FileSystemEntry, label: string | null, deep: boolean): Promise<Given[]> {
  if (entry.name.startsWith(".")) return [];
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) =>
      (entry as FileSystemFileEntry).file(resolve, reject),
    );
    return [{ file, label }];
  }
  const found: Given[] = [];
  for (const inner of await readEntries(entry as FileSystemDirectoryEntry)) {
    found.push(...(await walk(inner, deep || inner.isFile ? label : inner.name, true)));
  }
  return found;
}

/** The files of a drop. One folder's subfolders are classes; so are several folders. */
export async function readDropped(transfer: DataTransfer): Promise<Given[]> {
  // Both lists are emptied once this function has waited.
  const files = [...transfer.files];
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry());
  const folders = entries.filter((entry) => entry?.isDirectory);
  if (!folders.length) return files.map((file) => ({ file, label: null }));
  const found: Given[] = [];
  for (const entry of entries) {
    const isClass = entry?.isDirectory && folders.length > 1;
    if (entry) found.push(...(await walk(entry, isClass ? entry.name : null, Boolean(isClass))));
  }
  return found.sort((a, b) => a.file.name.localeCompare(b.file.name, "en"));
}
