// What a run has done, what it is doing, and how long that may take.
import { useEffect, useState } from "preact/hooks";
import { isOver } from "./api";
import { formatSeconds } from "./format";
import type { RunningJob } from "./shapes";

/** Seconds since a time, counted on. */
function useElapsed(since: string | null): number | null {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const clock = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(clock);
  }, []);
  return since === null ? null : Math.max(0, now - Date.parse(since)) / 1000;
}

export function Stages({ job }: { job: RunningJob }) {
  const over = isOver(job);
  const last = job.stages.length - 1;
  const elapsed = useElapsed(job.started);
  const left = job.stages.at(-1)?.left_seconds ?? null;
  return (
    <>
      <ol class="stages">
        {job.stages.map((stage, place) => {
          const working = place === last && !over;
          const cutOff = place === last && over && job.state !== "done";
          return (
            <li
              key={`${place} ${stage.name}`}
              class={working ? "working" : cutOff ? "cut" : "done"}
            >
              <span class="sign" aria-hidden="true">
                {working ? "●" : cutOff ? "–" : "✓"}
              </span>
              <span class="name">{stage.name}</span>
              {working && (
                <>
                  <progress
                    aria-label={stage.name}
                    {...(stage.total ? { max: stage.total, value: stage.done } : {})}
                  />
                  <span class="said">
                    {stage.total ? `${stage.done} of ${stage.total}` : ""}
                    {stage.detail && `${stage.total ? ", " : ""}${stage.detail}`}
                  </span>
                </>
              )}
            </li>
          );
        })}
      </ol>
      {!over && (
        <p class="fine times">
          {elapsed !== null && `${formatSeconds(elapsed)} so far`}
          {left !== null && left > 0 && `; this step takes about ${formatSeconds(left)} more`}
        </p>
      )}
    </>
  );
}
