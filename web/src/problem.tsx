// An error, at the entry that it is about.
import type { Refused } from "./api";

export function Problem({ id, error }: { id: string; error: Refused | null }) {
  // The region stands there before there is an error, so that screen readers tell it.
  return (
    <div id={id} role="alert">
      {error && <p class="problem">{error.message}</p>}
    </div>
  );
}

/** What an entry needs to be tied to its Problem. */
export function tie(id: string, error: Refused | null) {
  return error ? { "aria-invalid": true, "aria-describedby": id } : {};
}
