// A job as the server tells of it, from now to its end.
import { useEffect, useState } from "preact/hooks";
import { type Refused, asRefused, followJob, isOver, readJob } from "./api";
import type { RunningJob } from "./shapes";

interface Followed {
  job: RunningJob | null;
  error: Refused | null;
  /** The line to the server is broken; the browser is trying again. */
  broken: boolean;
  setJob: (job: RunningJob) => void;
}

export function useJob(id: string): Followed {
  const [job, setJob] = useState<RunningJob | null>(null);
  const [error, setError] = useState<Refused | null>(null);
  const [broken, setBroken] = useState(false);
  useEffect(() => {
    let stop = () => {};
    let gone = false;
    const hear = (told: RunningJob) => {
      setJob(told);
      // Events come without the evidence.
      if (told.state === "done") readJob(id).then(setJob, () => undefined);
    };
    readJob(id).then(
      (found) => {
        if (gone) return;
        setJob(found);
        if (!isOver(found)) stop = followJob(id, hear, setBroken);
      },
      (found: unknown) => setError(asRefused(found)),
    );
    return () => {
      gone = true;
      stop();
    };
  }, [id]);
  return { job, error, broken, setJob };
}
