// A path on the machine that packlight runs on, for what is too large or too many to be dropped.
import { useState } from "preact/hooks";
import { type Refused, asRefused } from "./api";
import { Problem, tie } from "./problem";
import { useRemembered } from "./remember";

interface Props {
  id: string;
  label: string;
  example: string;
  onPath: (path: string) => Promise<void>;
}

export function PathEntry({ id, label, example, onPath }: Props) {
  const [{ path }, setPath] = useRemembered(`packlight:${id}`, { path: "" });
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Refused | null>(null);

  const open = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await onPath(path.trim());
    } catch (found) {
      setError(asRefused(found));
    }
    setBusy(false);
  };

  return (
    <form class="path" onSubmit={open}>
      <label for={id}>{label}</label>
      <div class="row">
        <input
          id={id}
          type="text"
          placeholder={example}
          autocomplete="off"
          spellcheck={false}
          value={path}
          {...tie(`${id}-problem`, error)}
          onInput={(event) => setPath({ path: event.currentTarget.value })}
        />
        <button type="submit" disabled={busy || !path.trim()}>
          {busy ? "Opening…" : "Open"}
        </button>
      </div>
      <Problem id={`${id}-problem`} error={error} />
    </form>
  );
}
