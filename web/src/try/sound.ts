// A sound file as a model wants it: one channel, at its rate, as long as its input.
import { type Value, countOf, fromNumbers, resolveDims } from "./arrays";
import type { Tensor } from "../shapes";

const RATE = 16000; // where nothing says which
const MOST_SECONDS = 30;

/** What the input takes: hertz and numbers, as far as they are known. */
interface Window {
  rate: number | null;
  length: number | null;
}

export async function sound(file: File, input: Tensor, window: Window): Promise<Value> {
  const rate = window.rate ?? RATE;
  let decoded: AudioBuffer;
  try {
    // Decoding in a context brings the sound to the context's rate.
    decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} holds no sound that this browser can read: try a .wav file.`);
  }
  const mixed = new Float32Array(Math.min(decoded.length, MOST_SECONDS * rate));
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    const one = decoded.getChannelData(channel);
    for (let at = 0; at < mixed.length; at++) {
      mixed[at] = (mixed[at] ?? 0) + (one[at] ?? 0) / decoded.numberOfChannels;
    }
  }
  const dims = resolveDims(input.shape, window.length ?? mixed.length);
  const heard = new Float32Array(countOf(dims)); // silence follows where the file ends
  heard.set(mixed.subarray(0, heard.length));
  return fromNumbers(heard, dims, input.dtype);
}
