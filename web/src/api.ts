// The server's routes as functions. Whatever goes wrong is a Refused with a sentence for people.
import type { Given } from "./dropped";
import type {
  About,
  Checked,
  EncodedTensor,
  Forecast,
  Job,
  Model,
  RunningJob,
  Samples,
  Settings,
  TryPlan,
} from "./shapes";

const UNREACHABLE =
  "packlight does not answer. Is “packlight serve” still running in its terminal? " +
  "What you entered here is kept.";

/** field: the entry that it is about; missing: files that a model names and that were not given. */
export class Refused extends Error {
  constructor(
    sentence: string,
    readonly field: string | null = null,
    readonly status = 0,
    readonly id: string | null = null,
    readonly missing: string[] = [],
  ) {
    super(sentence);
  }
}

/** Any error as one for people. */
export function asRefused(error: unknown): Refused {
  if (error instanceof Refused) return error;
  return new Refused(error instanceof Error ? error.message : String(error));
}

function refuse(status: number, text: string): Refused {
  try {
    const said = JSON.parse(text) as Partial<Refused> & { error?: string };
    if (said.error) {
      return new Refused(said.error, said.field, status, said.id, said.missing);
    }
  } catch {
    // Not JSON: the status has to do.
  }
  return new Refused(`packlight answered with status ${status}.`, null, status);
}

async function ask<T>(method: string, path: string, body?: object): Promise<T> {
  let answer: Response;
  let text: string;
  try {
    answer = await fetch(path, {
      method,
      cache: "no-store",
      ...(method !== "GET" && { headers: { "Content-Type": "application/json" } }),
      ...(body && { body: JSON.stringify(body) }),
    });
    text = await answer.text();
  } catch {
    throw new Refused(UNREACHABLE);
  }
  if (!answer.ok) throw refuse(answer.status, text);
  return (text ? JSON.parse(text) : null) as T;
}

type Told = (share: number) => void;

/** Sends a file; `told` hears the share that has arrived. XMLHttpRequest, as fetch tells nothing. */
function send<T>(path: string, file: File, told: Told, label: string | null = null): Promise<T> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const query = new URLSearchParams({ name: file.name, ...(label !== null && { label }) });
    request.open("POST", `${path}?${query}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => told(event.loaded / Math.max(event.total, 1));
    request.onerror = () => reject(new Refused(UNREACHABLE));
    request.onload = () => {
      if (request.status >= 400) reject(refuse(request.status, request.responseText));
      else resolve(JSON.parse(request.responseText) as T);
    };
    request.send(file);
  });
}

export const readAbout = () => ask<About>("GET", "/api/about");

export const sendModel = (file: File, told: Told) => send<Model>("/api/models", file, told);
export const sendModelData = (id: string, file: File, told: Told) =>
  send<Model>(`/api/models/${id}/files`, file, told);
export const openModel = (path: string) => ask<Model>("POST", "/api/models/path", { path });
export const readModel = (id: string) => ask<Model>("GET", `/api/models/${id}`);

export const sendSample = (id: string, { file, label }: Given, told: Told) =>
  send<Samples>(`/api/models/${id}/samples`, file, told, label);
export const openSamples = (id: string, path: string) =>
  ask<Samples>("POST", `/api/models/${id}/samples/path`, { path });
export const removeSamples = (id: string) => ask<Samples>("DELETE", `/api/models/${id}/samples`);
export const checkSamples = (id: string, preprocess: string) =>
  ask<Checked>("POST", `/api/models/${id}/samples/check`, preprocess ? { preprocess } : {});

export const forecast = (model: string, settings: Settings) =>
  ask<Forecast>("POST", "/api/forecast", { model, settings });

export const startJob = (model: string, settings: Settings) =>
  ask<{ id: string }>("POST", "/api/jobs", { model, settings });
export const readJobs = () => ask<Job[]>("GET", "/api/jobs");
export const readJob = (id: string) => ask<RunningJob>("GET", `/api/jobs/${id}`);
export const cancelJob = (id: string) => ask<RunningJob>("POST", `/api/jobs/${id}/cancel`, {});
export const removeJob = (id: string) => ask<null>("DELETE", `/api/jobs/${id}`);

export const reportAddress = (id: string) => `/api/jobs/${id}/report`;
export const downloadAddress = (id: string) => `/api/jobs/${id}/download`;

export const readTryPlan = (id: string) => ask<TryPlan>("GET", `/api/jobs/${id}/try`);
export const readGolden = (id: string, sample: number) =>
  ask<{ inputs: Record<string, EncodedTensor> }>("GET", `/api/jobs/${id}/try/${sample}`);

/** Follows a job until it ends; returns how to stop. `lost` hears whether the line is broken. */
export function followJob(
  id: string,
  heard: (job: RunningJob) => void,
  lost: (broken: boolean) => void,
): () => void {
  const events = new EventSource(`/api/jobs/${id}/events`);
  events.addEventListener("job", (event) => {
    const job = JSON.parse(event.data as string) as RunningJob;
    lost(false);
    heard(job);
    if (isOver(job)) events.close(); // else the browser would ask again, for ever
  });
  events.onerror = () => lost(true);
  return () => events.close();
}

export const isOver = (job: Job) => job.state !== "queued" && job.state !== "running";
