// What a run has done, what it is doing, and how long that may take.
import { formatSeconds } from "./format";
import { isOver } from "./api";
import type { RunningJob } from "./shapes";

export function Stages({ job }: { job: RunningJob }) {
  const over = isOver(job);
  const last = job.stages.length - 1;
  return (
    <>
      <ol class="stages">
        {job.stages.map((stage, place) => {
          const working = place === last && !over;
          const cutOff = place === last && over && job.state !== "done";
          return (
            <li key={`${place} ${stage.name}`} class={working ? "working" : cutOff ? "cut" : "done"}>
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
          {job.seconds !== null && `${formatSeconds(job.seconds)} so far`}
          {job.seconds_left !== null && `, about ${formatSeconds(job.seconds_left)} left`}
        </p>
      )}
    </>
  );
}
