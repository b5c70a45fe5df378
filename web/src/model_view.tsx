// What the model is: what goes in and comes out, and where its bytes and milliseconds are.
import { formatBytes, formatMs, formatNumber, formatPercent, formatShape } from "./format";
import type { Model, Tensor } from "./shapes";

const MOST_BARS = 6;

function Tensors({ tensors }: { tensors: Tensor[] }) {
  return (
    <>
      {tensors.map((tensor) => (
        <p class="tensor" key={tensor.name}>
          <code>{tensor.name}</code> {formatShape(tensor.shape)}{" "}
          <span class="op">{tensor.dtype}</span>
        </p>
      ))}
    </>
  );
}

interface Bar {
  name: string;
  amount: number;
  said: string;
}

/** Bars of amounts, largest first; what is left out is one bar more. */
function Bars({
  title,
  bars,
  say,
}: {
  title: string;
  bars: Bar[];
  say: (amount: number) => string;
}) {
  const sorted = bars.toSorted((a, b) => b.amount - a.amount);
  const shown = sorted.slice(0, MOST_BARS);
  const rest = sorted.slice(MOST_BARS);
  if (rest.length) {
    const amount = rest.reduce((sum, bar) => sum + bar.amount, 0);
    shown.push({ name: `${rest.length} others`, amount, said: say(amount) });
  }
  const most = Math.max(...shown.map((bar) => bar.amount), Number.MIN_VALUE);
  return (
    <table class="bars">
      <caption>{title}</caption>
      <tbody>
        {shown.map((bar) => (
          <tr key={bar.name}>
            <th scope="row">{bar.name}</th>
            <td class="bar">
              <svg width="100%" height="14" aria-hidden="true">
                <rect
                  class="compressed"
                  height="14"
                  rx="3"
                  width={`${(100 * bar.amount) / most}%`}
                />
              </svg>
            </td>
            <td class="number after">{bar.said}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

export function ModelView({ model }: { model: Model }) {
  const timed = model.operators.filter((one) => one.ms !== null);
  const macs = model.layers.reduce((sum, layer) => sum + (layer.macs ?? 0), 0);
  return (
    <>
      <dl class="facts">
        <div>
          <dt>Size</dt>
          <dd>{formatBytes(model.size_bytes)}</dd>
        </div>
        <div>
          <dt>Takes</dt>
          <dd>
            <Tensors tensors={model.inputs} />
          </dd>
        </div>
        <div>
          <dt>Gives</dt>
          <dd>
            <Tensors tensors={model.outputs} />
          </dd>
        </div>
        {macs > 0 && (
          <div>
            <dt>Multiplications</dt>
            <dd>{formatNumber(macs / 1e6)} million for one sample</dd>
          </div>
        )}
        {model.milliseconds !== null && (
          <div>
            <dt>One run takes</dt>
            <dd>{formatMs(model.milliseconds)} here</dd>
          </div>
        )}
      </dl>
      {timed.length > 0 && (
        <>
          <h3>Where the milliseconds are</h3>
          <Bars
            title="Milliseconds by operator"
            say={formatMs}
            bars={timed.map((one) => ({
              name: one.operator,
              amount: one.ms ?? 0,
              said: `${formatMs(one.ms)}${one.share === null ? "" : `, ${formatPercent(one.share)}`}`,
            }))}
          />
        </>
      )}
      {model.layers.length > 0 && (
        <details open={!timed.length}>
          <summary>Where the bytes are</summary>
          <Bars
            title="Bytes by layer"
            say={formatBytes}
            bars={model.layers.map((layer) => ({
              name: `${layer.name} (${layer.operator})`,
              amount: layer.weights_bytes,
              said: formatBytes(layer.weights_bytes),
            }))}
          />
        </details>
      )}
      {model.notes.length > 0 && (
        <ul class="notes fine">
          {model.notes.map((note) => (
            <li key={note}>{note}</li>
          ))}
        </ul>
      )}
    </>
  );
}
