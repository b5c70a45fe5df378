// What one of the model's inputs is fed: a sample's, or the user's own picture, sound or numbers.
import { useEffect, useState } from "preact/hooks";
import { Drop } from "../drop";
import { formatNumber, formatShape } from "../format";
import { Problem } from "../problem";
import { type Refused, asRefused } from "../api";
import type { TryInput } from "../shapes";
import { type Value, toNumbers } from "./arrays";
import { numbers } from "./numbers";
import { PREPARATIONS, inputLayout, picture } from "./picture";
import { sound } from "./sound";
import { ValuePicture } from "./value_picture";

const MOST_SHOWN = 12;

interface Props {
  /** Of its elements: names of tensors may hold anything. */
  id: string;
  input: TryInput;
  value: Value;
  onChange: (value: Value) => void;
}

export function InputEntry({ id, input, value, onChange }: Props) {
  const [error, setError] = useState<Refused | null>(null);
  const [bitmap, setBitmap] = useState<ImageBitmap | null>(null);
  const [preparation, setPreparation] = useState(
    input.preprocess ?? (input.dtype.startsWith("float") ? "0..1" : "0..255"),
  );
  const [text, setText] = useState("");
  const isPicture = input.kind === "picture";

  const give = async (make: () => Value | Promise<Value>) => {
    setError(null);
    try {
      onChange(await make());
    } catch (found) {
      setError(asRefused(found));
    }
  };

  const take = (file: File) =>
    give(async () => {
      if (isPicture) {
        const decoded = await createImageBitmap(file).catch(() => {
          throw new Error(`${file.name} holds no picture that this browser can read.`);
        });
        setBitmap(decoded);
        return picture(decoded, input, preparation);
      }
      if (input.kind === "sound" && !/\.(csv|json|txt)$/i.test(file.name)) return sound(file, input);
      const read = await file.text();
      setText(read);
      return numbers(read, input);
    });

  useEffect(() => {
    if (!isPicture) return;
    const paste = (event: ClipboardEvent) => {
      const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
      if (file) void take(file);
    };
    addEventListener("paste", paste);
    return () => removeEventListener("paste", paste);
  });

  const choices = [...PREPARATIONS] as string[];
  if (!choices.includes(preparation)) choices.push(preparation);

  return (
    <div class="try-input">
      <h3>
        <code>{input.name}</code> <span class="op">{formatShape(value.dims)}</span>
      </h3>
      {isPicture ? (
        <ValuePicture value={value} layout={inputLayout(input)} about="What the model is given" />
      ) : (
        <p class="values">
          <code>{preview(value)}</code>
        </p>
      )}
      <Drop
        id={id}
        small
        accept={isPicture ? "image/*" : input.kind === "sound" ? "audio/*,.wav" : ".csv,.json,.txt"}
        error={error}
        onFiles={([file]) => file && void take(file)}
      >
        <strong>
          {isPicture ? "Your own picture" : input.kind === "sound" ? "Your own sound" : "Your own numbers"}
        </strong>
        <span>{isPicture ? "drop, choose or paste it" : "drop or choose a file"}</span>
      </Drop>
      {isPicture && (
        <div class="field">
          <label for={`${id}-scale`}>Its numbers</label>
          <select
            id={`${id}-scale`}
            value={preparation}
            onChange={(event) => {
              const chosen = event.currentTarget.value;
              setPreparation(chosen);
              if (bitmap) void give(() => picture(bitmap, input, chosen));
            }}
          >
            {choices.map((choice) => (
              <option key={choice}>{choice}</option>
            ))}
          </select>
        </div>
      )}
      {!isPicture && (
        <div class="field">
          <label for={`${id}-text`}>Or type or paste numbers (JSON or CSV)</label>
          <textarea
            id={`${id}-text`}
            rows={3}
            spellcheck={false}
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
          />
          <button type="button" disabled={!text.trim()} onClick={() => give(() => numbers(text, input))}>
            Use these
          </button>
        </div>
      )}
      <Problem id={`${id}-problem`} error={error} />
    </div>
  );
}

function preview(value: Value): string {
  const shown = [...toNumbers(value).subarray(0, MOST_SHOWN)].map((number) => formatNumber(number));
  return shown.join("  ") + (value.data.length > MOST_SHOWN ? "  …" : "");
}
