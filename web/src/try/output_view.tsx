// One output of both models, side by side, and how far they agree.
import { formatNumber, formatPercent } from "../format";
import { type Agreement, compare, kindOf, topScores } from "./agreement";
import { type Value, toNumbers } from "./arrays";
import { layoutOf } from "./picture";
import { ValuePicture } from "./value_picture";

const MOST_SCORES = 5;
const MOST_NUMBERS = 12;

interface Props {
  name: string;
  original: Value;
  compressed: Value;
}

function Scores({ value }: { value: Value }) {
  return (
    <table class="scores" aria-label="The largest scores, by place in the output">
      <tbody>
        {topScores(value, MOST_SCORES).map(({ place, score, share }) => (
          <tr key={place}>
            <th scope="row">{place}</th>
            <td class="bar">
              <svg width="100%" height="12" aria-hidden="true">
                <rect height="12" rx="3" width={`${100 * share}%`} />
              </svg>
            </td>
            <td class="number">{formatNumber(score)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Output({ value, about }: { value: Value; about: string }) {
  const kind = kindOf(value);
  if (kind === "classes") return <Scores value={value} />;
  const layout = layoutOf(value.dims);
  if (kind === "picture" && layout)
    return <ValuePicture value={value} layout={layout} about={about} />;
  const numbers = toNumbers(value);
  return (
    <p class="values">
      <code>
        {[...numbers.subarray(0, MOST_NUMBERS)].map((number) => formatNumber(number)).join("  ")}
        {numbers.length > MOST_NUMBERS && `  … (${numbers.length} numbers)`}
      </code>
    </p>
  );
}

function describeAgreement(found: Agreement): string {
  const range = Number.isFinite(found.share)
    ? `${formatNumber(found.largest)}, ${formatPercent(found.share)} of the output’s range`
    : formatNumber(found.largest);
  const difference = found.largest === 0 ? "No number differs." : `Largest difference: ${range}.`;
  if (found.sameTop === null) return difference;
  return `${found.sameTop ? "They agree on the class." : "They choose different classes."} ${difference}`;
}

export function OutputView({ name, original, compressed }: Props) {
  const found = compare(original, compressed);
  return (
    <div class="try-output">
      <h3>
        <code>{name}</code>
      </h3>
      <p class={found.sameTop === false ? "agreement differs" : "agreement"}>
        <span aria-hidden="true">{found.sameTop === false ? "✗ " : found.sameTop ? "✓ " : ""}</span>
        {describeAgreement(found)}
      </p>
      <div class="pair">
        <div class="original">
          <h4>Original</h4>
          <Output value={original} about={`${name} of the original`} />
        </div>
        <div class="compressed">
          <h4>Compressed</h4>
          <Output value={compressed} about={`${name} of the compressed model`} />
        </div>
      </div>
    </div>
  );
}
