// What the page and its worker say to each other.
import type { TryFiles } from "../shapes";
import type { Value } from "./arrays";

export type Outputs = Record<string, Value>;

export type Question =
  { ask: "load"; models: TryFiles[] } | { ask: "run"; feeds: Record<string, Value> };

/** outputs and milliseconds: one entry a model; milliseconds are medians of `rounds` runs each. */
export interface Ran {
  outputs: Outputs[];
  milliseconds: number[];
  rounds: number;
}

export type Answer = { loaded: true } | { ran: Ran } | { error: string };
