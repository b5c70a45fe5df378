// How a run ended: the verdict in a sentence, before and after, and what to do with it.
import { downloadAddress, reportAddress } from "./api";
import { asSentence } from "./format";
import { Heading } from "./heading";
import { StateMark } from "./job_state";
import type { Figure, Job } from "./shapes";

function Figures({ figures }: { figures: Figure[] }) {
  return (
    <table class="figures">
      <thead>
        <tr>
          <td />
          <th scope="col">Before</th>
          <th scope="col">After</th>
          <th scope="col">Change</th>
        </tr>
      </thead>
      <tbody>
        {figures.map((figure) => (
          <tr key={figure.name}>
            <th scope="row">{figure.name}</th>
            <td class="number">{figure.before}</td>
            <td class="number after">{figure.after}</td>
            <td>
              <span class={`change ${figure.tone}`}>{figure.change}</span>{" "}
              {figure.spread && <span class="spread">{figure.spread}</span>}
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

export function Verdict({ job }: { job: Job }) {
  return (
    <>
      <StateMark job={job} />
      <Heading title={`${job.name}: done`}>{job.sentence ?? `${job.name} is done.`}</Heading>
      {job.reason && <p class="reason">{asSentence(job.reason)}</p>}
      <Figures figures={job.figures?.rows ?? []} />
      <p class="actions">
        <a class="button main" href={downloadAddress(job.id)} download>
          Download
        </a>
        <a class="button" href={reportAddress(job.id)} target="_blank" rel="noopener">
          Open the report
        </a>
      </p>
    </>
  );
}
