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
  // What is rounded is not for those who want nothing rounded.
  const exact = settings.preset === "lossless";
  const size = exact ? { ...found.size_bytes, low: found.size_bytes.high } : found.size_bytes;
  const most = Math.max(model.size_bytes, size.high);
  const share = (bytes: number) => `${Math.max((100 * bytes) / most, 0.5)}%`;
  return (
    <div class={stale ? "forecast stale" : "forecast"} aria-busy={stale}>
      <svg width="100%" height="34" role="img" aria-label="Size now, and the sizes to expect">
        <rect class="original" y="2" height="12" rx="3" width={share(model.size_bytes)} />
        <rect class="expected" y="20" height="12" rx="3" width={share(size.high)} />
        <rect class="compressed" y="20" height="12" rx="3" width={share(size.low)} />
      </svg>
      <div role="status">
        <p>
          <strong>
            {formatBytes(size.low)}
            {size.high > 1.02 * size.low && ` to ${formatBytes(size.high)}`}
          </strong>{" "}
          instead of {formatBytes(model.size_bytes)}
          {exact ? ", and smaller when packed for download" : ", as far down as the budget allows"}.
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
