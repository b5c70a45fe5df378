// From a model to a run: what it is, samples, device, budget, forecast, start.
import { useEffect, useState } from "preact/hooks";
import { type Refused, asRefused, readModel, startJob } from "./api";
import { BudgetEntry } from "./budget_entry";
import { DeviceEntry } from "./device_entry";
import { ForecastView } from "./forecast_view";
import { Heading } from "./heading";
import { ModelView } from "./model_view";
import { Problem } from "./problem";
import { useRemembered } from "./remember";
import { go } from "./route";
import { SamplesEntry, areGiven } from "./samples_entry";
import type { About, Model, Samples } from "./shapes";
import { FIRST_WISHES, MORE, toSettings } from "./wishes";

const NONE: Samples = { count: 0, bytes: 0, files: [], path: null };

/** Entries that show what is wrong with them; all else is said beside the start. */
const ENTRIES = [...MORE, "samples", "target", "max_drop", "preset"];

export function ModelScreen({ id, about }: { id: string; about: About }) {
  const [model, setModel] = useState<Model | null>(null);
  const [samples, setSamples] = useState<Samples>(NONE);
  const [wishes, setWishes] = useRemembered(`packlight:wishes:${id}`, FIRST_WISHES);
  const [lost, setLost] = useState<Refused | null>(null);
  const [refused, setRefused] = useState<Refused | null>(null);
  const [starting, setStarting] = useState(false);

  useEffect(() => {
    readModel(id).then(
      (found) => {
        setModel(found);
        setSamples(found.samples);
      },
      (error: unknown) => setLost(asRefused(error)),
    );
  }, [id]);

  if (lost) {
    return (
      <>
        <Heading title="This model is not here" />
        <Problem id="lost" error={lost} />
        <p>
          <a href="#/">Begin with a model</a>
        </p>
      </>
    );
  }
  if (!model) return <p role="status">Reading the model…</p>;

  const at = (field: string) => (refused?.field === field ? refused : null);
  const elsewhere = refused && !ENTRIES.includes(refused.field ?? "") ? refused : null;

  const start = async (event: Event) => {
    event.preventDefault();
    setStarting(true);
    try {
      const job = await startJob(id, toSettings(wishes));
      go({ screen: "job", id: job.id });
    } catch (error) {
      const found = asRefused(error);
      setRefused(found);
      // After the entry has been drawn with its error.
      setTimeout(() => document.getElementById(found.field ?? "start")?.focus());
    }
    setStarting(false);
  };

  return (
    <>
      <Heading title={model.name} />
      <section aria-labelledby="about">
        <h2 id="about">What it is</h2>
        <ModelView model={model} />
      </section>
      <section aria-labelledby="samples-title">
        <h2 id="samples-title">Samples</h2>
        <SamplesEntry
          model={model}
          about={about}
          samples={samples}
          preprocess={wishes.preprocess}
          refused={at("samples")}
          onChange={(given) => {
            setSamples(given);
            setRefused(null);
          }}
        />
      </section>
      <section aria-labelledby="device-title">
        <h2 id="device-title">Device</h2>
        <DeviceEntry
          devices={about.devices}
          chosen={wishes.target}
          error={at("target")}
          onChange={(target) => setWishes({ target })}
        />
      </section>
      <section aria-labelledby="budget-title">
        <h2 id="budget-title">Accuracy against size</h2>
        <BudgetEntry wishes={wishes} refused={refused} onChange={setWishes} />
      </section>
      <section aria-labelledby="forecast-title">
        <h2 id="forecast-title">What to expect</h2>
        <ForecastView
          model={model}
          samples={samples}
          settings={toSettings(wishes)}
          onRefused={setRefused}
        />
        <p>
          <button id="start" type="button" class="main" disabled={starting} onClick={start}>
            {starting
              ? "Starting…"
              : areGiven(samples)
                ? "Compress it"
                : "Compress it without samples"}
          </button>
        </p>
        <Problem id="start-problem" error={elsewhere} />
      </section>
    </>
  );
}
