// All that was tried, on size and quality: left is smaller, up is better, as in the report.
// Hollow marks lose more than is allowed; the ring is around the one that was chosen.
import { scaleLinear, scaleLog } from "d3-scale";
import { useEffect, useRef, useState } from "preact/hooks";
import { formatBytes, formatNumber, formatPercent } from "./format";
import type { Point } from "./shapes";

const FAR = 4; // sizes that are so many times one another stand on a logarithmic scale
const HEIGHT = 300;
const EDGE = { left: 62, right: 18, top: 18, bottom: 46 };
const SHARES = ["top-1 accuracy", "top-1 agreement", "explained variance"];

/** The width that an element has, as it changes. */
function useWidth() {
  const place = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(640);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => {
      if (entry) setWidth(Math.max(260, Math.round(entry.contentRect.width)));
    });
    if (place.current) observer.observe(place.current);
    return () => observer.disconnect();
  }, []);
  return { place, width };
}

function pad(low: number, high: number): [number, number] {
  const gap = 0.1 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [low - gap, high + gap];
}

type Measured = Point & { quality: number };

/** The best of each size: no other point is both smaller and better. */
function front(points: Measured[]): Measured[] {
  let best = -Infinity;
  return points
    .toSorted((a, b) => a.size_bytes - b.size_bytes || b.quality - a.quality)
    .filter((point) => {
      const better = point.quality > best;
      best = Math.max(best, point.quality);
      return better;
    });
}

interface Props {
  points: Point[];
  metric: string | null;
  /** The choice that was made, once it is. */
  chosen: string | null;
}

export function Plot({ points: all, metric, chosen }: Props) {
  const points = all.filter((point): point is Measured => point.quality !== null);
  const { place, width } = useWidth();
  const areShares = metric ? SHARES.includes(metric) : points.every((point) => point.quality <= 1);
  const write = (quality: number) =>
    areShares ? formatPercent(quality) : formatNumber(quality, 4);
  const sizes = points.map((point) => point.size_bytes);
  const qualities = points.map((point) => point.quality);
  const [small, large] = [Math.min(...sizes), Math.max(...sizes)];
  const log = large > FAR * small;
  const x = log
    ? scaleLog().domain([small / 1.15, large * 1.15])
    : scaleLinear().domain(pad(small, large));
  x.range([EDGE.left, width - EDGE.right]);
  const y = scaleLinear()
    .domain(pad(Math.min(...qualities), Math.max(...qualities)))
    .range([HEIGHT - EDGE.bottom, EDGE.top]);
  const wanted = Math.max(3, Math.round(width / 110));
  const marks =
    log && x.ticks(wanted).length > 2 * wanted ? thin(x.ticks(wanted), wanted) : x.ticks(wanted);
  const best = front(points);
  const steps = best
    .map(
      (point, at) =>
        `${at ? `H${x(point.size_bytes)}V` : `M${x(point.size_bytes)} `}${y(point.quality)}`,
    )
    .join("");
  const bottom = HEIGHT - EDGE.bottom;

  return (
    <div ref={place} class="canvas">
      {points.length > 0 && (
        <svg
          class="plot"
          role="img"
          width={width}
          height={HEIGHT}
          aria-label={describe(points, chosen, write)}
        >
          {y.ticks(5).map((value) => (
            <g key={`y${value}`}>
              <line
                class="grid"
                x1={EDGE.left}
                x2={width - EDGE.right}
                y1={y(value)}
                y2={y(value)}
              />
              <text class="tick" x={EDGE.left - 8} y={y(value) + 4} text-anchor="end">
                {write(value)}
              </text>
            </g>
          ))}
          {marks.map((value) => (
            <g key={`x${value}`}>
              <line class="grid" x1={x(value)} x2={x(value)} y1={EDGE.top} y2={bottom} />
              <text class="tick" x={x(value)} y={bottom + 17} text-anchor="middle">
                {formatBytes(value)}
              </text>
            </g>
          ))}
          <text class="axis" x={EDGE.left} y={bottom + 38}>
            ← smaller
          </text>
          <text class="axis" x={width - EDGE.right} y={bottom + 38} text-anchor="end">
            ↑ better{metric ? `: ${metric}` : ""}
          </text>
          <path class="front-line" d={steps} />
          {points.map((point, at) => (
            <g key={`${at} ${point.choice}`} class="point">
              <circle
                class={`mark ${point.kept ? "tried front" : "beyond"}`}
                cx={x(point.size_bytes)}
                cy={y(point.quality)}
                r={point.choice === chosen ? 6.5 : 5}
              >
                <title>{`${point.choice}: ${formatBytes(point.size_bytes)}, ${write(point.quality)}`}</title>
              </circle>
              {point.choice === chosen && (
                <circle class="ring" cx={x(point.size_bytes)} cy={y(point.quality)} r={10} />
              )}
            </g>
          ))}
        </svg>
      )}
      {all.length > 0 && (
        <details>
          <summary>All {all.length} as a table</summary>
          <div class="scroll" tabIndex={0} role="region" aria-label="All that was tried">
            <table>
              <thead>
                <tr>
                  <th scope="col">what was tried</th>
                  <th scope="col" class="number">
                    size
                  </th>
                  <th scope="col" class="number">
                    {metric ?? "quality"}
                  </th>
                  <th scope="col" />
                </tr>
              </thead>
              <tbody>
                {all.map((point, at) => (
                  <tr key={`${at} ${point.choice}`}>
                    <td>{point.choice}</td>
                    <td class="number">{formatBytes(point.size_bytes)}</td>
                    <td class="number">
                      {point.quality === null ? "not measured" : write(point.quality)}
                    </td>
                    <td>
                      {point.choice === chosen ? (
                        <span class="pill">chosen</span>
                      ) : (
                        !point.kept && <span class="pill front">loses too much</span>
                      )}
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </details>
      )}
    </div>
  );
}

function thin(values: number[], wanted: number): number[] {
  return values.filter((_, at) => at % Math.ceil(values.length / wanted) === 0);
}

function describe(
  points: Measured[],
  chosen: string | null,
  write: (quality: number) => string,
): string {
  const said = `Size and quality of ${points.length} files that were tried.`;
  const found = points.find((point) => point.choice === chosen);
  if (!found) return said;
  return `${said} Chosen: ${found.choice}, ${formatBytes(found.size_bytes)}, ${write(found.quality)}.`;
}
