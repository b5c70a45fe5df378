// What was entered outlives a reload of the tab.
import { useRef, useState } from "preact/hooks";

/** State under a key of the tab's own storage; the second value sets parts of it. */
export function useRemembered<T extends object>(
  key: string,
  initial: T,
): [T, (part: Partial<T>) => void] {
  const [value, setValue] = useState<T>(() => {
    try {
      return { ...initial, ...(JSON.parse(sessionStorage.getItem(key) ?? "{}") as Partial<T>) };
    } catch {
      return initial;
    }
  });
  const latest = useRef(value);
  const set = (part: Partial<T>) => {
    latest.current = { ...latest.current, ...part };
    setValue(latest.current);
    try {
      // Now, and not after the page is drawn: the tab may be gone by then.
      sessionStorage.setItem(key, JSON.stringify(latest.current));
    } catch {
      // A browser without storage forgets on reload, and that is all.
    }
  };
  return [value, set];
}
