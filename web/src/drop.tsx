// Where files are dropped, or chosen with mouse or keyboard.
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import type { Refused } from "./api";
import { type Given, readDropped } from "./dropped";
import { tie } from "./problem";

interface Props {
  id: string;
  children: ComponentChildren;
  accept?: string;
  multiple?: boolean;
  error?: Refused | null;
  /** How much has been sent, 0..1, while something is. */
  sent?: number | null;
  small?: boolean;
  onFiles: (given: Given[]) => void;
}

export function Drop(props: Props) {
  const { id, error = null, sent = null } = props;
  const [over, setOver] = useState(false);
  const busy = sent !== null;

  const drop = async (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    if (busy || !event.dataTransfer) return;
    const given = await readDropped(event.dataTransfer);
    if (given.length) props.onFiles(props.multiple ? given : given.slice(0, 1));
  };

  return (
    <label
      class={`drop${over ? " over" : ""}${props.small ? " small" : ""}`}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={drop}
    >
      <input
        id={id}
        class="hidden"
        type="file"
        multiple={props.multiple ?? false}
        accept={props.accept ?? ""}
        disabled={busy}
        {...tie(`${id}-problem`, error)}
        onChange={(event) => {
          const files = [...(event.currentTarget.files ?? [])];
          const given = files.map((file) => ({ file, label: null }));
          event.currentTarget.value = ""; // so that the same file can be chosen again
          if (given.length) props.onFiles(given);
        }}
      />
      <span class="drop-text">{props.children}</span>
      {busy && (
        <span class="sending" role="status">
          {sent < 1 ? "Sending…" : "Reading…"}
          <progress aria-label="Sent" {...(sent < 1 ? { max: 1, value: sent } : {})} />
        </span>
      )}
    </label>
  );
}
