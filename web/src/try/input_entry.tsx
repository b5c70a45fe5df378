// What one of the model's inputs is fed: a sample's, or the user's own picture, sound or numbers.
import { useEffect, useState } from "preact/hooks";
import { Drop } from "../drop";
import { formatNumber, formatShape } from "../format";
import { Problem } from "../problem";
import { type Refused, asRefused } from "../api";
import type { Tensor, TryKind } from "../shapes";
import { type Value, toNumbers } from "./arrays";
import { numbers } from "./numbers";
import { PREPARATIONS, type PictureLayout, layoutOf, picture } from "./picture";
import { sound } from "./sound";
import { ValuePicture } from "./value_picture";

const MOST_SHOWN = 12;

interface Props {
  /** Of its elements: names of tensors may hold anything. */
  id: string;
  input: Tensor;
  kind: TryKind;
  value: Value;
  onChange: (value: Value) => void;
}

export function InputEntry({ id, input, kind, value, onChange }: Props) {
  const [error, setError] = useState<Refused | null>(null);
  const [bitmap, setBitmap] = useState<ImageBitmap | null>(null);
  const layout = kind.kind === "picture" ? pictureLayout(kind) : null;
  const [preparation, setPreparation] = useState(
    (kind.kind === "picture" && kind.preprocess) ||
      (input.dtype.startsWith("float") ? "0..1" : "0..255"),
  );
  const [text, setText] = useState("");

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
      if (layout) {
        const decoded = await createImageBitmap(file).catch(() => {
          throw new Error(`${file.name} holds no picture that this browser can read.`);
        });
        setBitmap(decoded);
        return picture(decoded, layout, input.dtype, preparation);
      }
      if (kind.kind === "sound" && !/\.(csv|json|txt)$/i.test(file.name)) {
        return sound(file, input, kind);
      }
      const read = await file.text();
      setText(read);
      return numbers(read, input);
    });

  useEffect(() => {
    if (!layout) return;
    const paste = (event: ClipboardEvent) => {
      const file = [...(event.clipboardData?.files ?? [])].find((one) =>
        one.type.startsWith("image/"),
      );
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
      <div class="given-value">
        {layout ? (
          <ValuePicture
            value={value}
            layout={layoutOf(value.dims) ?? layout}
            about="What the model is given"
          />
        ) : (
          <p class="values">
            <code>{preview(value)}</code>
          </p>
        )}
      </div>
      <div>
        <Drop
          id={id}
          small
          accept={layout ? "image/*" : kind.kind === "sound" ? "audio/*,.wav" : ".csv,.json,.txt"}
          error={error}
          onFiles={([given]) => given && void take(given.file)}
        >
          <strong>{`Your own ${kind.kind}`}</strong>
          <span>{layout ? "drop, choose or paste it" : "drop or choose a file"}</span>
        </Drop>
        {layout && (
          <div class="field">
            <label for={`${id}-scale`}>Its colours become</label>
            <select
              id={`${id}-scale`}
              value={preparation}
              onChange={(event) => {
                const chosen = event.currentTarget.value;
                setPreparation(chosen);
                if (bitmap) void give(() => picture(bitmap, layout, input.dtype, chosen));
              }}
            >
              {choices.map((choice) => (
                <option key={choice} value={choice}>
                  {SAID[choice] ?? choice}
                </option>
              ))}
            </select>
          </div>
        )}
        {!layout && (
          <div class="field">
            <label for={`${id}-text`}>Or type or paste numbers (JSON or CSV)</label>
            <textarea
              id={`${id}-text`}
              rows={3}
              spellcheck={false}
              value={text}
              onInput={(event) => setText(event.currentTarget.value)}
            />
            <button
              type="button"
              disabled={!text.trim()}
              onClick={() => give(() => numbers(text, input))}
            >
              Use these
            </button>
          </div>
        )}
        <Problem id={`${id}-problem`} error={error} />
      </div>
    </div>
  );
}

const SAID: Record<string, string> = {
  "0..1": "numbers from 0 to 1",
  "-1..1": "numbers from −1 to 1",
  imagenet: "ImageNet’s mean 0, deviation 1",
  "0..255": "numbers from 0 to 255",
};
const SIDE = 224; // where the model leaves it open

function pictureLayout(kind: TryKind & { kind: "picture" }): PictureLayout {
  return {
    channels: kind.channels,
    height: kind.height ?? SIDE,
    width: kind.width ?? SIDE,
    channelsFirst: kind.channels_first,
  };
}

function preview(value: Value): string {
  const shown = [...toNumbers(value).subarray(0, MOST_SHOWN)].map((number) => formatNumber(number));
  return shown.join("  ") + (value.data.length > MOST_SHOWN ? "  …" : "");
}
