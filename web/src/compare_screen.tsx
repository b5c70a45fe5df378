// Runs side by side: a column a run, a row a figure.
import { useEffect, useState } from "preact/hooks";
import { type Refused, asRefused, readJobs } from "./api";
import { formatTime } from "./format";
import { Heading } from "./heading";
import { StateMark } from "./job_state";
import { Problem } from "./problem";
import { address } from "./route";
import type { Job } from "./shapes";
import { describeSettings } from "./wishes";

export function CompareScreen({ ids }: { ids: string[] }) {
  const [jobs, setJobs] = useState<Job[] | null>(null);
  const [error, setError] = useState<Refused | null>(null);
  const asked = ids.join(",");
  useEffect(() => {
    readJobs().then(
      (all) => setJobs(all.filter((job) => asked.split(",").includes(job.id))),
      (found: unknown) => setError(asRefused(found)),
    );
  }, [asked]);
  const names = [
    ...new Set(jobs?.flatMap((job) => (job.figures?.rows ?? []).map((figure) => figure.name))),
  ];
  return (
    <>
      <Heading title="Runs side by side" />
      <Problem id="compare-problem" error={error} />
      {jobs && (
        <div class="scroll compare" tabIndex={0} role="region" aria-label="Runs side by side">
          <table>
            <thead>
              <tr>
                <td />
                {jobs.map((job) => (
                  <th scope="col" key={job.id}>
                    <a href={address({ screen: "job", id: job.id })}>{job.name}</a>
                    <div>{formatTime(job.created)}</div>
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              <tr>
                <th scope="row">Asked for</th>
                {jobs.map((job) => (
                  <td key={job.id}>{describeSettings(job.settings)}</td>
                ))}
              </tr>
              <tr>
                <th scope="row">Verdict</th>
                {jobs.map((job) => (
                  <td key={job.id}>
                    <StateMark job={job} />
                  </td>
                ))}
              </tr>
              {names.map((name) => (
                <tr key={name}>
                  <th scope="row">{name}</th>
                  {jobs.map((job) => {
                    const figure = job.figures?.rows.find((one) => one.name === name);
                    return (
                      <td key={job.id}>
                        {figure && (
                          <>
                            <strong>{figure.after}</strong>{" "}
                            <span class={`change ${figure.tone}`}>{figure.change}</span>
                            <div class="op">before: {figure.before}</div>
                          </>
                        )}
                      </td>
                    );
                  })}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <p>
        <a href="#/runs">Choose others</a>
      </p>
    </>
  );
}
