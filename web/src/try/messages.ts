// What the page and its worker say to each other.
import type { Value } from "./arrays";

export interface ModelFiles {
  model: string;
  data: { path: string; address: string }[];
}

export type Outputs = Record<string, Value>;

export type Question =
  | { ask: "load"; models: ModelFiles[] }
  | { ask: "run"; feeds: Record<string, Value> };

/** outputs and milliseconds: one entry a model; milliseconds are medians of `rounds` runs each. */
export interface Ran {
  outputs: Outputs[];
  milliseconds: number[];
  rounds: number;
}

export type Answer = { loaded: true } | { ran: Ran } | { error: string };
