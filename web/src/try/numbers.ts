// Typed or pasted numbers: JSON, or separated by commas, semicolons, blanks or lines.
import { type Value, countOf, fromNumbers, resolveDims } from "./arrays";
import { formatShape } from "../format";
import type { Tensor } from "../shapes";

type Nested = unknown[];

export function numbers(text: string, input: Tensor): Value {
  const found = read(text.trim());
  const wrong = found.findIndex((number) => !Number.isFinite(number));
  if (wrong >= 0) throw new Error(`Entry ${wrong + 1} is not a number.`);
  const dims = resolveDims(input.shape, found.length);
  if (found.length !== countOf(dims)) {
    throw new Error(
      `There ${found.length === 1 ? "is 1 number" : `are ${found.length} numbers`}, but ` +
        `“${input.name}” takes ${countOf(dims)} (${formatShape(dims)}).`,
    );
  }
  return fromNumbers(found, dims, input.dtype);
}

function read(text: string): number[] {
  if (text.startsWith("[")) {
    let parsed: Nested;
    try {
      parsed = JSON.parse(text) as Nested;
    } catch {
      throw new Error("This begins like JSON, but is none: is a bracket or a comma missing?");
    }
    return (parsed.flat(Infinity) as unknown[]).map((one) =>
      typeof one === "number" || typeof one === "boolean" ? Number(one) : Number.NaN,
    );
  }
  return text
    ? text
        .split(/[\s,;]+/)
        .filter(Boolean)
        .map(Number)
    : [];
}
