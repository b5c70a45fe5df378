// The original and the compressed model side by side, run by the browser itself.
import { useEffect, useRef, useState } from "preact/hooks";
import { type Refused, asRefused, readGolden, readTryPlan } from "../api";
import { formatMs, formatTimes } from "../format";
import { Problem } from "../problem";
import type { Job, TryPlan } from "../shapes";
import { type Value, decode, zeros } from "./arrays";
import { InputEntry } from "./input_entry";
import type { Ran } from "./messages";
import { OutputView } from "./output_view";
import { type Runner, startRunner } from "./runner";

type Feeds = Record<string, Value>;

async function readFeeds(job: string, plan: TryPlan, sample: number): Promise<Feeds> {
  const feeds: Feeds = {};
  if (plan.samples > 0) {
    const { inputs } = await readGolden(job, sample);
    for (const [name, encoded] of Object.entries(inputs)) feeds[name] = decode(encoded);
  }
  for (const input of plan.inputs) feeds[input.name] ??= zeros(input);
  return feeds;
}

export function TryView({ job }: { job: Job }) {
  const runner = useRef<Runner | null>(null);
  const [doing, setDoing] = useState<"" | "loading" | "running">("");
  const [plan, setPlan] = useState<TryPlan | null>(null);
  const [sample, setSample] = useState(0);
  const [feeds, setFeeds] = useState<Feeds>({});
  const [ran, setRan] = useState<Ran | null>(null);
  const [error, setError] = useState<Refused | null>(null);

  useEffect(() => () => runner.current?.stop(), []);

  const work = async (what: "loading" | "running", task: () => Promise<void>) => {
    setDoing(what);
    setError(null);
    try {
      await task();
    } catch (found) {
      setError(asRefused(found));
      setRan(null);
    }
    setDoing("");
  };

  const run = async (given: Feeds) => {
    setFeeds(given);
    setDoing("running");
    setRan((await runner.current?.run(given)) ?? null);
  };

  const open = () =>
    work("loading", async () => {
      const found = await readTryPlan(job.id);
      runner.current?.stop();
      runner.current = startRunner();
      await runner.current.load([found.files.original, found.files.model]);
      const first = await readFeeds(job.id, found, 0);
      setPlan(found);
      await run(first);
    });

  const choose = (chosen: number) =>
    work("running", async () => {
      if (!plan) return;
      setSample(chosen);
      await run(await readFeeds(job.id, plan, chosen));
    });

  const [before = Number.NaN, after = Number.NaN] = ran?.milliseconds ?? [];
  const [original, compressed] = ran?.outputs ?? [];
  return (
    <section aria-labelledby="try">
      <h2 id="try">Try it here</h2>
      <p>
        Both models, run by this browser on a sample or on something of your own, which does not
        leave it.
      </p>
      {!plan && (
        <p>
          <button type="button" class="main" disabled={doing !== ""} onClick={open}>
            {doing ? "Loading both models…" : "Try it in this browser"}
          </button>
        </p>
      )}
      <Problem id="try-problem" error={error} />
      {plan && (
        <>
          {plan.samples === 0 && <p class="fine">{plan.why_no_samples}</p>}
          {plan.samples > 0 && (
            <div class="field">
              <label for="try-sample">A sample that nothing was chosen with</label>
              <select
                id="try-sample"
                value={sample}
                onChange={(event) => void choose(Number(event.currentTarget.value))}
              >
                {Array.from({ length: plan.samples }, (_, at) => (
                  <option key={at} value={at}>
                    {at + 1} of {plan.samples}
                  </option>
                ))}
              </select>
            </div>
          )}
          <div class="try-inputs">
            {plan.inputs.map((input, at) => {
              const value = feeds[input.name];
              return (
                value && (
                  <InputEntry
                    key={input.name}
                    id={`try-input-${at}`}
                    input={input}
                    kind={plan.kinds[input.name] ?? { kind: "numbers" }}
                    value={value}
                    onChange={(given) =>
                      void work("running", () => run({ ...feeds, [input.name]: given }))
                    }
                  />
                )
              );
            })}
          </div>
          <div role="status" aria-busy={doing !== ""} class={doing ? "outputs stale" : "outputs"}>
            {ran && original && compressed && (
              <>
                {Object.entries(original).map(([name, value]) => {
                  const other = compressed[name];
                  return (
                    other && (
                      <OutputView key={name} name={name} original={value} compressed={other} />
                    )
                  );
                })}
                <p class="speed">
                  <strong>{formatMs(before)}</strong> the original,{" "}
                  <strong>{formatMs(after)}</strong> compressed: {say(before / after)} here.
                </p>
                <p class="fine">
                  Medians of {ran.rounds} runs each, in turns, in onnxruntime-web (WASM, one
                  thread). Other devices and runtimes differ; the table above is for the device you
                  chose.
                </p>
              </>
            )}
          </div>
        </>
      )}
    </section>
  );
}

function say(factor: number): string {
  if (factor > 1.03) return `${formatTimes(factor)} times faster`;
  if (factor < 0.97) return `${formatTimes(1 / factor)} times slower`;
  return "equally fast";
}
