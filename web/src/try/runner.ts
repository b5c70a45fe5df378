// The worker as two functions: load models, run them.
import type { Value } from "./arrays";
import type { TryFiles } from "../shapes";
import type { Answer, Question, Ran } from "./messages";

export interface Runner {
  load: (models: TryFiles[]) => Promise<void>;
  run: (feeds: Record<string, Value>) => Promise<Ran>;
  stop: () => void;
}

export function startRunner(): Runner {
  const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  let last: Promise<unknown> = Promise.resolve();

  const ask = (question: Question) => {
    // One question at a time: the worker answers in order, and says not which.
    const answer = last.then(
      () =>
        new Promise<Answer>((resolve, reject) => {
          worker.onmessage = ({ data }: MessageEvent<Answer>) => resolve(data);
          worker.onerror = (event) =>
            reject(new Error(event.message || "The browser could not start its worker."));
          worker.postMessage(question);
        }),
    );
    last = answer.catch(() => undefined);
    return answer.then((said) => {
      if ("error" in said) throw new Error(said.error);
      return said;
    });
  };

  return {
    load: async (models) => void (await ask({ ask: "load", models })),
    run: async (feeds) => {
      const answer = await ask({ ask: "run", feeds });
      if (!("ran" in answer)) throw new Error("The worker answered something else.");
      return answer.ran;
    },
    stop: () => worker.terminate(),
  };
}
