// All runs with their figures; two or more can be put side by side.
import { useEffect, useState } from "preact/hooks";
import { type Refused, asRefused, isOver, readJobs, removeJob } from "./api";
import { formatTime } from "./format";
import { Heading } from "./heading";
import { StateMark } from "./job_state";
import { Problem } from "./problem";
import { useRemembered } from "./remember";
import { address, go } from "./route";
import type { Job } from "./shapes";
import { describeSettings } from "./wishes";

const after = (job: Job, name: string) =>
  job.figures?.rows.find((figure) => figure.name.startsWith(name));

export function RunsScreen() {
  const [jobs, setJobs] = useState<Job[] | null>(null);
  const [error, setError] = useState<Refused | null>(null);
  const [{ ids }, choose] = useRemembered<{ ids: string[] }>("packlight:compare", { ids: [] });

  const read = () => readJobs().then(setJobs, (found: unknown) => setError(asRefused(found)));
  useEffect(() => void read(), []);

  const remove = async (job: Job) => {
    setError(null);
    try {
      await removeJob(job.id);
    } catch (found) {
      setError(asRefused(found));
    }
    choose({ ids: ids.filter((id) => id !== job.id) });
    await read();
    document.querySelector<HTMLElement>("main h1")?.focus();
  };
  const chosen = (jobs ?? []).filter((job) => ids.includes(job.id)).map((job) => job.id);

  return (
    <>
      <Heading title="Runs" />
      <Problem id="runs-problem" error={error} />
      {jobs?.length === 0 && (
        <p class="reason">
          Nothing yet. <a href="#/">Begin with a model.</a>
        </p>
      )}
      {jobs && jobs.length > 0 && (
        <>
          <div class="scroll runs" tabIndex={0} role="region" aria-label="Runs">
            <table>
              <thead>
                <tr>
                  <th scope="col">
                    <span class="hidden">compare</span>
                  </th>
                  <th scope="col">model</th>
                  <th scope="col">state</th>
                  <th scope="col" class="number">
                    size
                  </th>
                  <th scope="col" class="number">
                    latency
                  </th>
                  <th scope="col">asked for</th>
                  <th scope="col">
                    <span class="hidden">remove</span>
                  </th>
                </tr>
              </thead>
              <tbody>
                {jobs.map((job) => {
                  const [size, latency] = [after(job, "Size"), after(job, "Latency")];
                  return (
                    <tr key={job.id}>
                      <td>
                        <input
                          type="checkbox"
                          aria-label={`Compare ${job.name}, ${formatTime(job.created)}`}
                          disabled={job.state !== "done"}
                          checked={chosen.includes(job.id)}
                          onChange={(event) =>
                            choose({
                              ids: event.currentTarget.checked
                                ? [...chosen, job.id]
                                : chosen.filter((id) => id !== job.id),
                            })
                          }
                        />
                      </td>
                      <td>
                        <a href={address({ screen: "job", id: job.id })}>{job.name}</a>
                        <div class="op">{formatTime(job.created)}</div>
                      </td>
                      <td>
                        <StateMark job={job} />
                      </td>
                      <td class="number">
                        {size && (
                          <>
                            {size.after} <div class={`change ${size.tone}`}>{size.change}</div>
                          </>
                        )}
                      </td>
                      <td class="number">
                        {latency && (
                          <>
                            {latency.after}{" "}
                            <div class={`change ${latency.tone}`}>{latency.change}</div>
                          </>
                        )}
                      </td>
                      <td>{describeSettings(job.settings)}</td>
                      <td>
                        {isOver(job) && (
                          <button
                            type="button"
                            class="quiet"
                            aria-label={`Remove the run of ${job.name}, ${formatTime(job.created)}`}
                            onClick={() => remove(job)}
                          >
                            Remove
                          </button>
                        )}
                      </td>
                    </tr>
                  );
                })}
              </tbody>
            </table>
          </div>
          <p class="actions">
            <button
              type="button"
              class="main"
              disabled={chosen.length < 2}
              onClick={() => go({ screen: "compare", ids: chosen })}
            >
              Compare
            </button>
            <span class="fine" role="status">
              {chosen.length < 2
                ? "Choose two or more that are done."
                : `${chosen.length} are chosen.`}
            </span>
          </p>
        </>
      )}
    </>
  );
}
