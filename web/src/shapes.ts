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
}

export interface Layer {
  name: string;
  operator: string;
  weights_bytes: number;
  macs: number | null;
  ms: number | null;
}

export interface OperatorTime {
  operator: string;
  ms: number | null;
  share: number | null;
}

/** files: names as they were given; described: what they were found to be, once checked. */
export interface Samples {
  count: number;
  bytes: number;
  files: string[];
  described: string | null;
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
  samples: Samples | null;
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

export interface Span {
  low: number;
  high: number;
}

export interface Forecast {
  seconds: number | null;
  size_bytes: Span;
  speed: Span | null;
  memory_bytes: number | null;
  text: string;
  notes: string[];
}

export type State = "queued" | "running" | "done" | "failed" | "cancelled" | "interrupted";

export type Tone = "better" | "worse" | "same" | "unknown";

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
  model: string | null;
  name: string;
  state: State;
  created: string;
  settings: Settings;
  position: number | null;
  seconds: number | null;
  seconds_left: number | null;
  original_bytes: number;
  verdict: "met" | "best-effort" | "not-worth-it" | null;
  sentence: string | null;
  reason: string | null;
  error: string | null;
  figures: Figure[];
}

export interface Stage {
  name: string;
  done: number;
  total: number | null;
  detail: string;
}

/** A file that was made and measured; quality is a share of 1 for most metrics. */
export interface Point {
  choice: string;
  size_bytes: number;
  quality: number;
  kept: boolean;
}

export interface RunningJob extends Job {
  stages: Stage[];
  points: Point[];
  metric: string | null;
}

export interface TryInput extends Tensor {
  kind: "picture" | "sound" | "numbers";
  height?: number;
  width?: number;
  channels?: number;
  layout?: "NCHW" | "NHWC";
  preprocess?: string;
  rate?: number;
  length?: number;
}

export interface TryPlan {
  inputs: TryInput[];
  outputs: Tensor[];
  samples: number;
  classes: string[] | null;
  data: { original: string[]; model: string[] };
}

export interface EncodedTensor {
  shape: number[];
  dtype: string;
  data: string;
}
