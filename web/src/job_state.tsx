// A run's state or verdict as a small mark.
import type { Job } from "./shapes";

const STATES: Record<Job["state"], string> = {
  queued: "waiting",
  running: "running",
  done: "done",
  failed: "failed",
  cancelled: "cancelled",
  interrupted: "interrupted",
};

/** The same words as in the report. */
const VERDICTS: Record<NonNullable<Job["verdict"]>, string> = {
  met: "✓ Budget met",
  "best-effort": "Best effort",
  "not-worth-it": "Not worth it",
};

export function StateMark({ job }: { job: Job }) {
  if (job.state === "done" && job.verdict) {
    return <span class={`badge ${job.verdict}`}>{VERDICTS[job.verdict]}</span>;
  }
  return <span class={`badge ${job.state}`}>{STATES[job.state]}</span>;
}
