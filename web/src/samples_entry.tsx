// The second step: samples, with which quality is measured.
import { useState } from "preact/hooks";
import { type Refused, asRefused, checkSamples, openSamples, removeSamples, sendSample } from "./api";
import { Drop } from "./drop";
import { count, formatBytes } from "./format";
import { PathEntry } from "./path_entry";
import { Problem } from "./problem";
import type { Model, Samples } from "./shapes";

const FOLDER = new Error(
  "That was a folder: type its path below, so that names of subfolders can count as classes, or " +
    "drop the files in it.",
);

interface Props {
  model: Model;
  samples: Samples | null;
  /** What a start found wrong with them. */
  refused: Refused | null;
  onChange: (samples: Samples | null) => void;
}

export function SamplesEntry({ model, samples, refused, onChange }: Props) {
  const [sent, setSent] = useState<number | null>(null);
  const [problem, setProblem] = useState<Refused | null>(null);
  const error = problem ?? refused;

  const check = async (given: Samples) => {
    onChange(given);
    const { described } = await checkSamples(model.id);
    onChange({ ...given, described });
  };

  const work = async (task: () => Promise<void>) => {
    setProblem(null);
    setSent(0);
    try {
      await task();
    } catch (found) {
      setProblem(asRefused(found));
    }
    setSent(null);
  };

  const take = (files: File[]) =>
    work(async () => {
      let given: Samples | null = null;
      for (const [done, file] of files.entries()) {
        given = await sendSample(model.id, file, (share) => setSent((done + share) / files.length));
      }
      if (given) await check(given);
    });

  const remove = () =>
    work(async () => {
      await removeSamples(model.id);
      onChange(null);
    });

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
        accept=".npz,.npy,.png,.jpg,.jpeg,.webp,.bmp,.gif,.tif,.tiff,.wav,.txt,.csv"
        error={error}
        sent={sent}
        small={samples !== null}
        onFiles={take}
        onFolder={() => setProblem(asRefused(FOLDER))}
      >
        <strong>{samples ? "Drop more samples here" : "Drop samples here"}</strong>
        <span>arrays (.npz, .npy), pictures or sounds (.wav)</span>
      </Drop>
      <Problem id="samples-problem" error={error} />
      <div role="status">
        {samples && (
          <p class="given">
            <span class={error ? "mark" : "mark good"} aria-hidden="true">
              {error ? "–" : "✓"}
            </span>
            <span>
              {samples.described ??
                `${count(samples.count, "file")}, ${formatBytes(samples.bytes)}: ${listFew(samples.files)}`}
            </span>
            <button type="button" class="quiet" onClick={remove}>
              Remove
            </button>
          </p>
        )}
      </div>
      <PathEntry
        id="samples-path"
        label="Or type the path of a file or folder on this machine; subfolders name classes"
        example="/home/me/photos"
        onPath={async (path) => check(await openSamples(model.id, path))}
      />
    </>
  );
}

function listFew(files: string[]): string {
  const shown = files.slice(0, 3).join(", ");
  return files.length > 3 ? `${shown} and ${files.length - 3} more` : shown;
}
