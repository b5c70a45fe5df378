// What to expect of the settings as they stand, before anything is run.
import { useEffect, useState } from "preact/hooks";
import { type Refused, asRefused, forecast } from "./api";
import { formatBytes } from "./format";
import type { Forecast, Model, Samples, Settings } from "./shapes";

const PAUSE_MS = 250; // a slider that is being dragged asks once it rests

interface Props {
  model: Model;
  samples: Samples;
  settings: Settings;
  onRefused: (error: Refused | null) => void;
}

export function ForecastView({ model, samples, settings, onRefused }: Props) {
  const [found, setFound] = useState<Forecast | null>(null);
  const [stale, setStale] = useState(true);
  const asked = JSON.stringify(settings);

  useEffect(() => {
    let gone = false;
    setStale(true);
    const wait = setTimeout(async () => {
      try {
        const answer = await forecast(model.id, JSON.parse(asked) as Settings);
        if (gone) return;
        setFound(answer);
        setStale(false);
        onRefused(null);
      } catch (error) {
        if (gone) return;
        setFound(null);
        setStale(false);
        onRefused(asRefused(error));
      }
    }, PAUSE_MS);
    return () => {
      gone = true;
      clearTimeout(wait);
    };
  }, [model.id, asked, samples.path, samples.count]);

  if (!found) {
    return (
      <p class="forecast fine">
        {stale ? "Looking ahead…" : "Nothing can be said before what is wrong above is mended."}
      </p>
    );
  }
  const guess = found.guessed_bytes;
  const low = guess ?? found.size_bytes.low;
  const high = guess ?? found.size_bytes.high;
  const most = Math.max(model.size_bytes, high);
  const share = (bytes: number) => `${Math.max((100 * bytes) / most, 0.5)}%`;
  const range = `${formatBytes(low)}${high > 1.02 * low ? ` to ${formatBytes(high)}` : ""}`;
  return (
    <div class={stale ? "forecast stale" : "forecast"} aria-busy={stale}>
      <svg width="100%" height="34" role="img" aria-label="Size now, and the size to expect">
        <rect class="original" y="2" height="12" rx="3" width={share(model.size_bytes)} />
        <rect class="expected" y="20" height="12" rx="3" width={share(high)} />
        <rect class="compressed" y="20" height="12" rx="3" width={share(low)} />
      </svg>
      <div role="status">
        <p>
          <strong>{guess === null ? range : `About ${range}`}</strong> instead of{" "}
          {formatBytes(model.size_bytes)}
          {found.packed && ", packed for the download"}.{" "}
          {settings.preset === "lossless"
            ? "It gets smaller when packed for download."
            : guess === null
              ? "How far down it goes the budget says."
              : "Guessed from how much rounding would change the weights; the run measures."}
        </p>
      </div>
      <details>
        <summary>What would be tried</summary>
        <pre class="fine" tabIndex={0}>
          {found.text.join("\n")}
        </pre>
      </details>
    </div>
  );
}
