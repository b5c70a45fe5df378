// Where everything begins: a place for a model, and the last runs.
import { useEffect, useState } from "preact/hooks";
import { readJobs } from "./api";
import { formatTime } from "./format";
import { Heading } from "./heading";
import { StateMark } from "./job_state";
import { ModelEntry } from "./model_entry";
import { address } from "./route";
import type { About, Job } from "./shapes";

export function StartScreen({ about }: { about: About }) {
  const [jobs, setJobs] = useState<Job[]>([]);
  useEffect(() => {
    readJobs().then(setJobs, () => setJobs([]));
  }, []);
  return (
    <>
      <Heading title="Make a model smaller and faster" />
      <p class="reason">
        And see, measured on samples of yours, that it still does its job. Model and samples stay on
        this machine.
      </p>
      <ModelEntry about={about} />
      {jobs.length > 0 && (
        <section aria-labelledby="recent">
          <h2 id="recent">Last runs</h2>
          <ul class="recent">
            {jobs.slice(0, 3).map((job) => (
              <li key={job.id}>
                <a href={address({ screen: "job", id: job.id })}>{job.name}</a>
                <StateMark job={job} />
                <span class="op">{formatTime(job.created)}</span>
              </li>
            ))}
          </ul>
          <p>
            <a href={address({ screen: "runs" })}>All runs, to compare them</a>
          </p>
        </section>
      )}
    </>
  );
}
