// What was entered outlives a reload of the tab.
import { useEffect, useState } from "preact/hooks";

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
  useEffect(() => {
    try {
      sessionStorage.setItem(key, JSON.stringify(value));
    } catch {
      // A browser without storage forgets on reload, and that is all.
    }
  }, [key, value]);
  return [value, (part) => setValue((before) => ({ ...before, ...part }))];
}
