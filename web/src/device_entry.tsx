// The third step: the device that the model is meant for.
import type { Refused } from "./api";
import { Pills } from "./pills";
import { Problem } from "./problem";
import type { Device } from "./shapes";

interface Props {
  devices: Device[];
  chosen: string;
  error: Refused | null;
  onChange: (name: string) => void;
}

export function DeviceEntry({ devices, chosen, error, onChange }: Props) {
  const device = devices.find((one) => one.name === chosen);
  return (
    <fieldset>
      <legend class="hidden">The device it is meant for</legend>
      <Pills
        name="target"
        options={devices.map(({ name, title }) => ({ name, title }))}
        chosen={chosen}
        describedBy="target-about"
        onChange={onChange}
      />
      <p id="target-about" class="fine" role="status">
        {device && (
          <>
            Runs in {device.runtime}.{" "}
            {device.fast.length > 0 && `Fast there: ${device.fast.join("; ")}. `}
            {device.why_not_here || (device.note && `Note: ${device.note}.`)}
          </>
        )}
      </p>
      <Problem id="target-problem" error={error} />
    </fieldset>
  );
}
