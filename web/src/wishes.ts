// What is entered about device and budget, and the settings that it comes to.
import type { Settings } from "./shapes";

/** Largest losses of quality that the slider offers; the first is: nothing is rounded. */
export const DROPS = ["0%", "0.1%", "0.5%", "1%", "2%", "5%", "10%"] as const;

export const PRESETS = [
  { name: "balanced", title: "Fast, then small", about: "the smaller file wins a near tie" },
  { name: "fastest", title: "As fast as can be", about: "whatever the size" },
  { name: "smallest", title: "Smallest download", about: "packed for sending, then unpacked" },
] as const;

/** stop: a place in DROPS. Texts are as on the command line; empty: not asked for. */
export interface Wishes {
  target: string;
  stop: number;
  preset: string;
  max_size: string;
  max_latency: string;
  max_download: string;
  prune: string;
  heal_minutes: string;
  preprocess: string;
  golden: boolean;
}

export const FIRST_WISHES: Wishes = {
  target: "laptop",
  stop: 3,
  preset: "balanced",
  max_size: "",
  max_latency: "",
  max_download: "",
  prune: "",
  heal_minutes: "",
  preprocess: "",
  golden: true,
};

export const MORE = [
  "max_size",
  "max_latency",
  "max_download",
  "prune",
  "heal_minutes",
  "preprocess",
];

export function toSettings(wishes: Wishes): Settings {
  const settings: Settings = {
    target: wishes.target,
    preset: wishes.stop === 0 ? "lossless" : wishes.preset,
    max_drop: DROPS[wishes.stop] ?? "1%",
    golden: wishes.golden,
  };
  for (const key of ["max_size", "max_latency", "max_download", "prune", "preprocess"] as const) {
    const text = wishes[key].trim();
    if (text) settings[key] = text;
  }
  const minutes = Number(wishes.heal_minutes.replace(",", "."));
  if (minutes > 0) settings.heal_minutes = minutes;
  return settings;
}

/** What was asked for, on one line. */
export function describeSettings(settings: Settings): string {
  const said = [settings.target, settings.preset];
  if (settings.max_drop && settings.preset !== "lossless") said.push(`loss ≤ ${settings.max_drop}`);
  if (settings.max_size) said.push(`size ≤ ${settings.max_size}`);
  if (settings.max_latency) said.push(`time ≤ ${settings.max_latency}`);
  if (settings.max_download) said.push(`download ≤ ${settings.max_download}`);
  if (settings.prune) said.push(`prune ${settings.prune}`);
  if (settings.heal_minutes) said.push(`heal ${settings.heal_minutes} min`);
  return said.join(", ");
}

/** What the slider's place means, for people. */
export function describeDrop(stop: number): string {
  if (stop === 0) return "Nothing is rounded: the same answers, to the last digit or nearly so.";
  const drop = DROPS[stop] ?? "1%";
  return `At most ${drop.replace("%", " %")} of quality may be lost: ${perThousand(drop)}.`;
}

function perThousand(drop: string): string {
  const thousandth = Math.round(10 * Number.parseFloat(drop));
  return thousandth % 10 === 0
    ? `${thousandth / 10} in 100 answers`
    : `${thousandth} in 1,000 answers`;
}
