// A tensor shown as a picture.
import { useEffect, useRef } from "preact/hooks";
import type { Value } from "./arrays";
import { type PictureLayout, drawValue } from "./picture";

export function ValuePicture(props: { value: Value; layout: PictureLayout; about: string }) {
  const { value, layout, about } = props;
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    if (canvas.current) drawValue(value, layout, canvas.current);
  }, [value, layout]);
  return <canvas ref={canvas} class="picture" role="img" aria-label={about} />;
}
