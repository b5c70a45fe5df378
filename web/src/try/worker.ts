// Runs models in onnxruntime-web (WASM, one thread), in turns, apart from the page.
import type * as Runtime from "onnxruntime-web";
import type { Value } from "./arrays";
import type { TryFiles } from "../shapes";
import type { Answer, Outputs, Question, Ran } from "./messages";

const WARM_MS = 200;
const MEASURE_MS = 1000;
const LEAST_ROUNDS = 5;

let runtime: typeof Runtime | null = null;
let sessions: Runtime.InferenceSession[] = [];

async function read(address: string): Promise<Uint8Array> {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`packlight does not hand out ${address} (${answer.status}).`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function load(models: TryFiles[]): Promise<void> {
  const place = new URL("/ort/", self.location.origin).href;
  runtime ??= (await import(/* @vite-ignore */ `${place}ort.wasm.min.mjs`)) as typeof Runtime;
  runtime.env.wasm.numThreads = 1;
  runtime.env.wasm.wasmPaths = place;
  runtime.env.logLevel = "fatal";
  for (const session of sessions) await session.release();
  sessions = [];
  for (const { url, data } of models) {
    const externalData = await Promise.all(
      data.map(async (part) => ({ path: part.path, data: await read(part.url) })),
    );
    sessions.push(
      await runtime.InferenceSession.create(await read(url), {
        executionProviders: ["wasm"],
        graphOptimizationLevel: "all",
        logSeverityLevel: 4,
        externalData,
      }),
    );
  }
}

function median(times: number[]): number {
  const sorted = times.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const high = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 ? high : (high + (sorted[middle - 1] ?? high)) / 2;
}

async function run(given: Record<string, Value>): Promise<Ran> {
  const ort = runtime;
  if (!ort) throw new Error("The models are not loaded.");
  const outputs: Outputs[] = [];
  const feeds = sessions.map((session) => {
    const taken: Record<string, Runtime.Tensor> = {};
    for (const name of session.inputNames) {
      const value = given[name];
      if (!value) throw new Error(`Nothing was given for the input “${name}”.`);
      taken[name] = new ort.Tensor(value.type as "float32", value.data as Float32Array, value.dims);
    }
    return taken;
  });
  const once = async (which: number) =>
    (sessions[which] as Runtime.InferenceSession).run(feeds[which] ?? {});

  for (const which of sessions.keys()) {
    const found = await once(which);
    const kept: Outputs = {};
    for (const [name, { type, dims, data }] of Object.entries(found)) {
      if (type !== "string") kept[name] = { type, dims: [...dims], data: data as Value["data"] };
    }
    outputs.push(kept);
  }
  // Code that the browser has seen a few times only is not yet the code that it will run.
  let began = performance.now();
  do {
    for (const which of sessions.keys()) await once(which);
  } while (performance.now() - began < WARM_MS);
  // Every round runs each model once and begins with another one, so that all see the same machine.
  const times = sessions.map(() => [] as number[]);
  began = performance.now();
  let rounds = 0;
  while (rounds < LEAST_ROUNDS || performance.now() - began < MEASURE_MS) {
    for (const turn of sessions.keys()) {
      const which = (turn + rounds) % sessions.length;
      const start = performance.now();
      await once(which);
      times[which]?.push(performance.now() - start);
    }
    rounds++;
  }
  return { outputs, milliseconds: times.map(median), rounds };
}

self.onmessage = async ({ data: question }: MessageEvent<Question>) => {
  let answer: Answer;
  try {
    if (question.ask === "load") {
      await load(question.models);
      answer = { loaded: true };
    } else {
      answer = { ran: await run(question.feeds) };
    }
  } catch (error) {
    answer = { error: String(error instanceof Error ? error.message : error).slice(0, 500) };
  }
  self.postMessage(answer);
};
