// One of several, as buttons that are all in sight.

interface Props {
  /** Of the entry; the browser tells entries apart by it. */
  name: string;
  options: readonly { name: string; title: string; about?: string }[];
  chosen: string;
  /** The element that says more of what is chosen. */
  describedBy?: string;
  onChange: (name: string) => void;
}

export function Pills({ name, options, chosen, describedBy, onChange }: Props) {
  return (
    <div class="pills">
      {options.map((one) => (
        <label key={one.name}>
          <input
            type="radio"
            name={name}
            value={one.name}
            checked={one.name === chosen}
            aria-describedby={describedBy}
            onChange={() => onChange(one.name)}
          />
          <span>
            {one.title}
            {one.about && <small> {one.about}</small>}
          </span>
        </label>
      ))}
    </div>
  );
}
