// What the server says and is told, as JSON.

export interface Tensor {
  name: string;
  shape: (number | string | null)[];
  dtype: string;
}

export interface Device {
  name: string;
  title: string;
  runtime: string;
  fast: string[];
  avoid: string[];
  note: string;
  measured_here: boolean;
  why_not_here: string;
}

export interface About {
  version: string;
  devices: Device[];
  upload_limit_bytes: number;
  /** Whether files of the machine may be named by their paths. */
  paths: boolean;
}

interface Layer {
  name: string;
  operator: string;
  weights_bytes: number;
  macs: number | null;
  ms: number | null;
}

interface OperatorTime {
  operator: string;
  ms: number | null;
  share: number | null;
}

/** Files that were sent, by their names, or the path of some that were not. */
export interface Samples {
  count: number;
  bytes: number;
  files: string[];
  path: string | null;
}

/** What samples were found to be. */
export interface Checked {
  samples: number;
  labelled: boolean;
  described: string;
  notes: string[];
}

export interface Model {
  id: string;
  name: string;
  size_bytes: number;
  inputs: Tensor[];
  outputs: Tensor[];
  layers: Layer[];
  operators: OperatorTime[];
  milliseconds: number | null;
  notes: string[];
  samples: Samples;
}

/** Values as on the command line. */
export interface Settings {
  target: string;
  preset: string;
  max_drop?: string;
  max_size?: string;
  max_latency?: string;
  max_download?: string;
  prune?: string;
  heal_minutes?: number;
  preprocess?: string;
  golden?: boolean;
}

/**
 * Sizes to expect of whole recipes, what the loss that is allowed may come to (packed for download
 * where `packed`; null where only other budgets are named), and the lines of a terminal.
 */
export interface Forecast {
  size_bytes: { low: number; high: number };
  guessed_bytes: number | null;
  packed: boolean;
  text: string[];
}

export type State = "queued" | "running" | "done" | "failed" | "cancelled" | "interrupted";

type Tone = "better" | "worse" | "same" | "unknown";

/** A row of the table of before and after. */
export interface Figure {
  name: string;
  before: string;
  after: string;
  change: string;
  spread: string;
  tone: Tone;
}

export interface Job {
  id: string;
  model: string;
  name: string;
  state: State;
  created: string;
  started: string | null;
  settings: Settings;
  samples: boolean;
  /** In the queue, from 1. */
  position: number | null;
  verdict: "met" | "best-effort" | "not-worth-it" | null;
  sentence: string | null;
  reason: string | null;
  error: string | null;
  figures: { rows: Figure[] } | null;
}

interface Stage {
  name: string;
  done: number;
  total: number | null;
  detail: string;
  left_seconds: number | null;
}

/**
 * A file that was made and measured. quality: a share of 1 for most metrics, null without samples;
 * kept: it loses no more than is allowed.
 */
export interface Point {
  choice: string;
  size_bytes: number;
  quality: number | null;
  kept: boolean;
}

/** evidence: of the report, once there is one. */
export interface RunningJob extends Job {
  stages: Stage[];
  points: Point[];
  evidence?: {
    metric: { name: string } | null;
    trials: { label: string; chosen: boolean }[];
  };
}

/** What an input takes, as far as its shape and the samples tell. */
export type TryKind =
  | {
      kind: "picture";
      height: number | null;
      width: number | null;
      channels: number;
      channels_first: boolean;
      preprocess: string | null;
    }
  | { kind: "sound"; length: number | null; rate: number | null }
  | { kind: "numbers" };

export interface TryFiles {
  url: string;
  data: { path: string; url: string }[];
}

export interface TryPlan {
  inputs: Tensor[];
  samples: number;
  why_no_samples: string;
  kinds: Record<string, TryKind>;
  files: { original: TryFiles; model: TryFiles };
}

export interface EncodedTensor {
  shape: number[];
  dtype: string;
  data: string;
}
