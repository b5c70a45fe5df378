// A run: its stages and what was tried while it works, its verdict once it is done.
import { useState } from "preact/hooks";
import { type Refused, asRefused, cancelJob, isOver, startJob } from "./api";
import { Heading } from "./heading";
import { StateMark } from "./job_state";
import { Plot } from "./plot";
import { Problem } from "./problem";
import { address, go } from "./route";
import type { RunningJob } from "./shapes";
import { Stages } from "./stages";
import { TryView } from "./try/try_view";
import { useJob } from "./use_job";
import { Verdict } from "./verdict";
import { describeSettings } from "./wishes";

const STOPPED: Partial<Record<RunningJob["state"], string>> = {
  failed: "This run failed",
  cancelled: "This run was cancelled",
  interrupted: "This run was interrupted",
};

/** The button that had the focus has gone. */
const focus = (button: HTMLButtonElement | null) => button?.focus();

function Cancel({ job, onDone }: { job: RunningJob; onDone: (job: RunningJob) => void }) {
  const [asking, setAsking] = useState<boolean | null>(null);
  const [error, setError] = useState<Refused | null>(null);
  const asked = asking !== null;
  const cancel = async () => {
    try {
      onDone(await cancelJob(job.id));
    } catch (found) {
      setError(asRefused(found));
    }
    setAsking(false);
  };
  return (
    <>
      <p class="actions" role="status">
        {asking ? (
          <>
            <span>Stop this run? What it found so far is lost.</span>
            <button type="button" ref={focus} onClick={cancel}>
              Stop it
            </button>
            <button type="button" class="quiet" onClick={() => setAsking(false)}>
              Go on
            </button>
          </>
        ) : (
          <button type="button" ref={asked ? focus : null} onClick={() => setAsking(true)}>
            Cancel
          </button>
        )}
      </p>
      <Problem id="cancel-problem" error={error} />
    </>
  );
}

function Again({ job }: { job: RunningJob }) {
  const [error, setError] = useState<Refused | null>(null);
  const { model } = job;
  const again = async () => {
    try {
      const { id } = await startJob(model, job.settings);
      go({ screen: "job", id });
    } catch (found) {
      setError(asRefused(found));
    }
  };
  return (
    <>
      <p class="actions">
        {job.state !== "done" && (
          <button type="button" onClick={again}>
            Start it again
          </button>
        )}
        <a class="button" href={address({ screen: "model", id: model })}>
          Other settings for this model
        </a>
      </p>
      <Problem id="again-problem" error={error} />
    </>
  );
}

function Unfinished({ job, onChange }: { job: RunningJob; onChange: (job: RunningJob) => void }) {
  const over = isOver(job);
  const title =
    STOPPED[job.state] ?? (job.state === "queued" ? "Waiting to compress" : "Compressing");
  const stage = job.stages.at(-1);
  return (
    <>
      <StateMark job={job} />
      <Heading key={String(over)} title={over ? `${title}: ${job.name}` : `${title} ${job.name}`} />
      <p class="reason">Asked for: {describeSettings(job.settings)}.</p>
      <p class="hidden" role="status">
        {stage && !over ? stage.name : title}
      </p>
      {job.error && (
        <p class="problem" role="alert">
          {job.error}
        </p>
      )}
      {job.state === "queued" && (
        <p>
          {job.position ? `It is number ${job.position} in the queue. ` : ""}It begins as soon as
          the runs before it are done; this page need not stay open.
        </p>
      )}
      <Stages job={job} />
      {over ? <Again job={job} /> : <Cancel job={job} onDone={onChange} />}
    </>
  );
}

export function JobScreen({ id }: { id: string }) {
  const { job, error, broken, setJob } = useJob(id);
  if (error) {
    return (
      <>
        <Heading title="This run is not here" />
        <Problem id="job-problem" error={error} />
        <p>
          <a href="#/runs">All runs</a>
        </p>
      </>
    );
  }
  if (!job) return <p role="status">Reading…</p>;
  const done = job.state === "done";
  return (
    <>
      {broken && !isOver(job) && (
        <p class="alarm" role="alert">
          packlight does not answer at the moment. The run goes on without this page; trying again…
        </p>
      )}
      {done ? <Verdict key="done" job={job} /> : <Unfinished job={job} onChange={setJob} />}
      {done && <TryView job={job} />}
      {job.points.length > 0 && (
        <section aria-labelledby="tried">
          <h2 id="tried">What was tried</h2>
          <p class="fine">
            {job.samples
              ? "Measured on samples that are for choosing alone; the verdict is on others."
              : "Without samples only sizes are known."}
          </p>
          <Plot
            points={job.points}
            metric={job.evidence?.metric?.name ?? null}
            chosen={job.evidence?.trials.find((trial) => trial.chosen)?.label ?? null}
          />
        </section>
      )}
      {done && <Again job={job} />}
    </>
  );
}
