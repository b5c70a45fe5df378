// A picture as a model wants it: resized and cropped, in its order of axes, with its numbers.
import { type Value, fromNumbers, toNumbers } from "./arrays";

const MEAN = [0.485, 0.456, 0.406];
const DEVIATION = [0.229, 0.224, 0.225];

export const PREPARATIONS = ["0..1", "-1..1", "imagenet", "0..255"] as const;

export interface PictureLayout {
  channels: number;
  height: number;
  width: number;
  channelsFirst: boolean;
}

/** How a picture lies in a tensor of four axes, or null where it cannot. */
export function layoutOf(dims: readonly number[]): PictureLayout | null {
  const [batch = 0, a = 0, b = 0, c = 0] = dims;
  if (dims.length !== 4 || batch !== 1) return null;
  const isColour = (size: number) => size === 1 || size === 3;
  if (isColour(a)) return { channels: a, height: b, width: c, channelsFirst: true };
  return isColour(c) ? { channels: c, height: a, width: b, channelsFirst: false } : null;
}

/** Mean and deviation of each channel, in units of 0..1. */
function normalization(preparation: string, channels: number): { mean: number[]; std: number[] } {
  const all = (value: number) => Array<number>(channels).fill(value);
  if (preparation === "-1..1") return { mean: all(0.5), std: all(0.5) };
  if (preparation === "0..255") return { mean: all(0), std: all(1 / 255) };
  if (preparation === "imagenet") {
    const average = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / 3;
    return channels === 3
      ? { mean: MEAN, std: DEVIATION }
      : { mean: all(average(MEAN)), std: all(average(DEVIATION)) };
  }
  const own = preparation.match(/^\s*mean\s*=([^=]*?),?\s*std\s*=([^=]*)$/);
  if (!own) return { mean: all(0), std: all(1) };
  const read = (text = "") => {
    const values = text.split(",").map(Number);
    return values.length === channels ? values : all(values[0] ?? 0);
  };
  return { mean: read(own[1]), std: read(own[2]) };
}

/** The middle of a picture, as large as fits, as the input's numbers. */
export function picture(
  bitmap: ImageBitmap,
  layout: PictureLayout,
  dtype: string,
  preparation: string,
): Value {
  const { channels, height, width, channelsFirst } = layout;
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  if (!pen) throw new Error("This browser cannot draw.");
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [across, down] = [bitmap.width * scale, bitmap.height * scale];
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "#fff"; // what is transparent is white
  pen.fillRect(0, 0, width, height);
  pen.drawImage(bitmap, (width - across) / 2, (height - down) / 2, across, down);
  const pixels = pen.getImageData(0, 0, width, height).data;
  const { mean, std } = normalization(preparation, channels);
  const numbers = new Float64Array(channels * height * width);
  const area = height * width;
  for (let at = 0; at < area; at++) {
    const colour = pixels.subarray(4 * at, 4 * at + 3) as unknown as [number, number, number];
    const grey = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2];
    for (let channel = 0; channel < channels; channel++) {
      const byte = channels === 1 ? grey : (colour[channel] ?? 0);
      const place = channelsFirst ? channel * area + at : at * channels + channel;
      numbers[place] = (byte / 255 - (mean[channel] ?? 0)) / (std[channel] ?? 1);
    }
  }
  const dims = channelsFirst ? [1, channels, height, width] : [1, height, width, channels];
  return fromNumbers(numbers, dims, dtype);
}

/** A tensor drawn as a picture: its least number black, its largest white. */
export function drawValue(value: Value, layout: PictureLayout, canvas: HTMLCanvasElement): void {
  const { channels, height, width, channelsFirst } = layout;
  const numbers = toNumbers(value);
  let [low, high] = [Infinity, -Infinity];
  for (const number of numbers) {
    low = Math.min(low, number);
    high = Math.max(high, number);
  }
  const area = height * width;
  const pixels = new Uint8ClampedArray(4 * area).fill(255);
  for (let at = 0; at < area; at++) {
    for (let colour = 0; colour < 3; colour++) {
      const channel = Math.min(colour, channels - 1);
      const number = numbers[channelsFirst ? channel * area + at : at * channels + channel] ?? low;
      pixels[4 * at + colour] = (255 * (number - low)) / (high - low || 1);
    }
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d")?.putImageData(new ImageData(pixels, width, height), 0, 0);
}
