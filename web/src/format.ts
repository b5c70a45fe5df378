// Numbers as people read them, the same as in the report (report/units.py).

export function formatNumber(value: number, digits = 3): string {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "not a number" : value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e15) return value.toExponential(digits - 1).replaceAll("-", "−");
  const exponent = Math.floor(Math.log10(Number(size.toPrecision(digits))));
  const places = Math.max(0, digits - 1 - exponent);
  return value
    .toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places })
    .replace("-", "−");
}

export function formatBytes(bytes: number): string {
  if (Math.abs(bytes) < 1000)
    return `${Math.round(bytes)} byte${Math.round(bytes) === 1 ? "" : "s"}`;
  let value = bytes;
  for (const unit of ["KB", "MB", "GB", "TB"]) {
    value /= 1000;
    if (Math.abs(value) < 999.5 || unit === "TB") return `${formatNumber(value)} ${unit}`;
  }
  return "";
}

export function formatMs(ms: number | null): string {
  if (ms === null) return "not measured";
  return ms >= 999.5 ? `${formatNumber(ms / 1000)} s` : `${formatNumber(ms)} ms`;
}

export function formatSeconds(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** A share of 1; what is not quite 100 % is never rounded up to it. */
export function formatPercent(share: number): string {
  const percent = 100 * share;
  const size = Math.abs(percent);
  let text = percent.toFixed(size < 1 || (size > 99 && size < 100) ? 2 : 1);
  if (text === "100.00" && percent < 100) text = "99.99";
  text = text.replace(/\.?0+$/, "");
  return `${text === "-0" || text === "" ? "0" : text} %`.replace("-", "−");
}

export function formatTimes(factor: number): string {
  if (factor < 1.3) return factor.toFixed(2);
  return factor < 9.95 ? factor.toFixed(1) : formatNumber(Math.round(factor));
}

export function count(number: number, noun: string): string {
  return `${number.toLocaleString("en-US")} ${noun}${number === 1 ? "" : "s"}`;
}

/** With a capital letter at the beginning and a full stop at the end. */
export function asSentence(text: string): string {
  const whole = /[.!?]$/.test(text) ? text : `${text}.`;
  return whole.charAt(0).toUpperCase() + whole.slice(1);
}

export function formatShape(shape: (number | string | null)[]): string {
  return shape.length ? shape.map((size) => size ?? "any").join(" × ") : "one number";
}

export function formatTime(created: string): string {
  const time = new Date(created);
  return Number.isNaN(time.getTime())
    ? created
    : time.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
