// The second step: samples, with which quality is measured.
import { useEffect, useState } from "preact/hooks";
import {
  type Refused,
  asRefused,
  checkSamples,
  openSamples,
  removeSamples,
  sendSample,
} from "./api";
import { Drop } from "./drop";
import type { Given } from "./dropped";
import { count, formatBytes } from "./format";
import { PathEntry } from "./path_entry";
import { Problem } from "./problem";
import type { About, Checked, Model, Samples } from "./shapes";
import { checkSize } from "./upload_limit";

interface Props {
  model: Model;
  about: About;
  samples: Samples;
  preprocess: string;
  /** What a start found wrong with them. */
  refused: Refused | null;
  onChange: (samples: Samples) => void;
}

export const areGiven = (samples: Samples) => samples.count > 0 || samples.path !== null;

export function SamplesEntry(props: Props) {
  const { model, about, samples, preprocess, refused, onChange } = props;
  const [sent, setSent] = useState<number | null>(null);
  const [checked, setChecked] = useState<Checked | null>(null);
  const [problem, setProblem] = useState<Refused | null>(null);
  const given = areGiven(samples);
  const error = problem ?? refused;

  // Whatever is given is opened once, also after a reload.
  useEffect(() => {
    if (!given) return;
    let stale = false;
    checkSamples(model.id, preprocess).then(
      (found) => {
        if (stale) return;
        setChecked(found);
        setProblem(null);
      },
      (found: unknown) => !stale && setProblem(asRefused(found)),
    );
    return () => {
      stale = true;
      setChecked(null);
    };
  }, [model.id, samples, preprocess]);

  const work = async (task: () => Promise<Samples>) => {
    setProblem(null);
    setSent(0);
    try {
      onChange(await task());
    } catch (found) {
      setProblem(asRefused(found));
    }
    setSent(null);
  };

  const take = (all: Given[]) =>
    work(async () => {
      let last = samples;
      for (const [done, one] of all.entries()) {
        checkSize(one.file, about, "samples");
        last = await sendSample(model.id, one, (share) => setSent((done + share) / all.length));
      }
      return last;
    });

  const remove = async () => {
    await work(() => removeSamples(model.id));
    document.getElementById("samples")?.focus(); // the button that had it is gone
  };

  return (
    <>
      <p>
        A few hundred inputs like those the model will meet, with the right answers if you have
        them. Without samples a model can be compressed, but nobody can say whether it still does
        its job.
      </p>
      <Drop
        id="samples"
        multiple
        accept=".npz,.npy,.png,.jpg,.jpeg,.webp,.bmp,.gif,.tif,.tiff,.wav"
        error={error}
        sent={sent}
        small={given}
        onFiles={take}
      >
        <strong>{given ? "Drop more samples here" : "Drop samples here"}</strong>
        <span>
          arrays (.npz, .npy), pictures or sounds (.wav), or a folder with a subfolder a class
        </span>
      </Drop>
      <Problem id="samples-problem" error={error} />
      <div role="status">
        {given && (
          <div class="given">
            <span class={checked ? "mark good" : "mark"} aria-hidden="true">
              {checked ? "✓" : "–"}
            </span>
            <span>
              {describe(samples)}
              {checked && `: ${count(checked.samples, "sample")}, `}
              {checked && (checked.labelled ? "with the right answers" : "without right answers")}
              {!checked && !error && ": looking at them…"}
              {checked?.notes.map((note) => (
                <small class="note" key={note}>
                  {note}
                </small>
              ))}
            </span>
            <button type="button" class="quiet" onClick={remove}>
              Remove
            </button>
          </div>
        )}
      </div>
      {about.paths && (
        <PathEntry
          id="samples-path"
          label="Or type the path of a file or folder on this machine; subfolders name classes"
          example="/home/me/photos"
          onPath={async (path) => onChange(await openSamples(model.id, path))}
        />
      )}
    </>
  );
}

function describe({ count: number, bytes, files, path }: Samples): string {
  if (path !== null) return path;
  if (number === 1) return `${files[0]}, ${formatBytes(bytes)}`;
  const shown = files.slice(0, 2).join(", ");
  return `${shown}${number > 2 ? ` and ${number - 2} more` : ""}, ${formatBytes(bytes)}`;
}
