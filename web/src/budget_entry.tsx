// The fourth step: accuracy against size on a slider, and other budgets for those who want them.
import type { Refused } from "./api";
import { Pills } from "./pills";
import { Problem, tie } from "./problem";
import { DROPS, MORE, PRESETS, type Wishes, describeDrop } from "./wishes";

interface Props {
  wishes: Wishes;
  refused: Refused | null;
  onChange: (part: Partial<Wishes>) => void;
}

export function BudgetEntry({ wishes, refused, onChange }: Props) {
  const at = (field: string) => (refused?.field === field ? refused : null);
  const inMore = MORE.some((field) => at(field)) || MORE.some((field) => wishes[field as "prune"]);

  const text = (
    field: "max_size" | "max_latency" | "max_download" | "prune" | "heal_minutes",
    label: string,
    example: string,
  ) => (
    <div class="field">
      <label for={field}>{label}</label>
      <input
        id={field}
        type="text"
        autocomplete="off"
        placeholder={example}
        value={wishes[field]}
        {...tie(`${field}-problem`, at(field))}
        onInput={(event) => onChange({ [field]: event.currentTarget.value })}
      />
      <Problem id={`${field}-problem`} error={at(field)} />
    </div>
  );

  return (
    <>
      <div class="slider">
        <label for="max_drop" class="hidden">
          How much quality may be lost
        </label>
        <input
          id="max_drop"
          type="range"
          min={0}
          max={DROPS.length - 1}
          step={1}
          value={wishes.stop}
          aria-valuetext={describeDrop(wishes.stop)}
          {...tie("max_drop-problem", at("max_drop"))}
          onInput={(event) => onChange({ stop: Number(event.currentTarget.value) })}
        />
        <div class="ends" aria-hidden="true">
          <span>as exact as the original</span>
          <span>as small as can be</span>
        </div>
        <p class="meaning">{describeDrop(wishes.stop)}</p>
        <Problem id="max_drop-problem" error={at("max_drop")} />
      </div>
      {wishes.stop > 0 && (
        <fieldset>
          <legend>Within that, what matters most?</legend>
          <Pills
            name="preset"
            options={PRESETS}
            chosen={wishes.preset}
            onChange={(preset) => onChange({ preset })}
          />
          <Problem id="preset-problem" error={at("preset")} />
        </fieldset>
      )}
      <details open={inMore}>
        <summary>More budgets and wishes</summary>
        <div class="fields">
          {text("max_size", "Largest size", "5MB or 25%")}
          {text("max_latency", "Longest time of one run", "10ms or 40%")}
          {text("max_download", "Largest download, packed", "1MB or 5%")}
          {text("prune", "Share of the multiplications to remove", "30% or auto")}
          {text("heal_minutes", "Minutes of training afterwards", "0")}
          <div class="field">
            <label for="preprocess">How pictures are prepared</label>
            <select
              id="preprocess"
              value={wishes.preprocess}
              {...tie("preprocess-problem", at("preprocess"))}
              onChange={(event) => onChange({ preprocess: event.currentTarget.value })}
            >
              <option value="">packlight finds out, or guesses and says so</option>
              <option value="0..1">numbers from 0 to 1</option>
              <option value="-1..1">numbers from −1 to 1</option>
              <option value="imagenet">ImageNet’s mean and deviation</option>
              <option value="0..255">numbers from 0 to 255</option>
            </select>
            <Problem id="preprocess-problem" error={at("preprocess")} />
          </div>
        </div>
        <label class="check">
          <input
            type="checkbox"
            checked={wishes.golden}
            onChange={(event) => onChange({ golden: event.currentTarget.checked })}
          />
          Put a few of the samples into the result, so that others can check it, and to try it here
        </label>
      </details>
    </>
  );
}
