// A file that is too large is told at once, and not after it was sent.
import { Refused } from "./api";
import { formatBytes } from "./format";
import type { About } from "./shapes";

export function checkSize(file: File, about: About, field: string): void {
  const limit = about.upload_limit_bytes;
  if (file.size > limit) {
    throw new Refused(
      `${file.name} has ${formatBytes(file.size)}, more than the ${formatBytes(limit)} that are ` +
        "taken: start packlight serve with a larger --max-upload.",
      field,
    );
  }
}
