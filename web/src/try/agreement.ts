// How two models' outputs compare: values in, values out.
import { type Value, toNumbers } from "./arrays";
import { layoutOf } from "./picture";

const LEAST_PICTURE = 8; // fewer pixels a side are numbers
const MOST_CLASSES = 100_000;

type OutputKind = "classes" | "picture" | "numbers";

/** What an output is taken to be, by its shape. */
export function kindOf({ dims, type }: Value): OutputKind {
  const sizes = dims.filter((size, axis) => axis > 0 || size !== 1);
  if (type.startsWith("float") && sizes.length === 1 && dims.length <= 2) {
    const [width = 0] = sizes;
    if (width >= 2 && width <= MOST_CLASSES) return "classes";
  }
  const layout = layoutOf(dims);
  if (layout && Math.min(layout.height, layout.width) >= LEAST_PICTURE) return "picture";
  return "numbers";
}

interface Score {
  place: number;
  score: number;
  /** Of 1: the score itself where all are shares of 1, else what softmax makes of it. */
  share: number;
}

/** The largest scores, best first. */
export function topScores(value: Value, most: number): Score[] {
  const scores = toNumbers(value);
  const sum = scores.reduce((total, score) => total + score, 0);
  const areShares = Math.abs(sum - 1) < 1e-2 && scores.every((score) => score >= 0);
  const highest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const weigh = (score: number) => (areShares ? score : Math.exp(score - highest));
  const whole = scores.reduce((total, score) => total + weigh(score), 0);
  return [...scores.keys()]
    .toSorted((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0))
    .slice(0, most)
    .map((place) => {
      const score = scores[place] ?? 0;
      return { place, score, share: weigh(score) / whole };
    });
}

/** sameTop: null where the output is no list of scores. share: of the original's range. */
export interface Agreement {
  sameTop: boolean | null;
  largest: number;
  share: number;
}

export function compare(original: Value, compressed: Value): Agreement {
  const [a, b] = [toNumbers(original), toNumbers(compressed)];
  let [largest, low, high] = [0, Infinity, -Infinity];
  for (let at = 0; at < a.length; at++) {
    const [one = Number.NaN, other = Number.NaN] = [a[at], b[at]];
    if (!Object.is(one, other)) {
      const difference = Math.abs(one - other);
      largest = Math.max(largest, Number.isNaN(difference) ? Infinity : difference);
    }
    low = Math.min(low, one);
    high = Math.max(high, one);
  }
  if (a.length !== b.length) largest = Infinity;
  const isScores = kindOf(original) === "classes";
  const sameTop = isScores
    ? topScores(original, 1)[0]?.place === topScores(compressed, 1)[0]?.place
    : null;
  const range = high - low;
  return { sameTop, largest, share: range > 0 ? largest / range : largest ? Infinity : 0 };
}
