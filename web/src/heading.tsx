// A screen's heading names the tab and takes the focus when the user came here from another screen.
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";

let arrived = false;

export function Heading({ title, children }: { title: string; children?: ComponentChildren }) {
  const place = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    if (arrived) place.current?.focus();
    arrived = true;
  }, []);
  useEffect(() => {
    document.title = `${title} · packlight`;
  }, [title]);
  return (
    <h1 ref={place} tabIndex={-1}>
      {children ?? title}
    </h1>
  );
}
