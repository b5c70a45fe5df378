// Tensors as the runtime takes and gives them, and their numbers.
import type { EncodedTensor, Tensor } from "../shapes";

// float16 has an array type of its own in new browsers only; the runtime takes its bits as well.
const ARRAYS = {
  bool: Uint8Array,
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  uint64: BigUint64Array,
  int64: BigInt64Array,
  float16: Uint16Array,
  float32: Float32Array,
  float64: Float64Array,
} as const;

type ElementType = keyof typeof ARRAYS;
type Data = InstanceType<(typeof ARRAYS)[ElementType]>;

/** A tensor of row-major numbers, in the runtime's names. */
export interface Value {
  type: string;
  dims: number[];
  data: Data;
}

export const countOf = (dims: readonly number[]) =>
  dims.reduce((product, size) => product * size, 1);

function arrayType(dtype: string): (typeof ARRAYS)[ElementType] {
  if (!(dtype in ARRAYS)) throw new Error(`A browser cannot hold numbers of the type ${dtype}.`);
  return ARRAYS[dtype as ElementType];
}

export function decode({ shape, dtype, data }: EncodedTensor): Value {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return { type: dtype, dims: shape, data: new (arrayType(dtype))(bytes.buffer) };
}

export function fromNumbers(numbers: ArrayLike<number>, dims: number[], dtype: string): Value {
  const data = new (arrayType(dtype))(numbers.length);
  for (let at = 0; at < data.length; at++) {
    const number = numbers[at] ?? 0;
    if (data instanceof BigInt64Array || data instanceof BigUint64Array) {
      data[at] = BigInt(Math.round(number));
    } else {
      data[at] = dtype === "float16" ? toHalf(number) : number;
    }
  }
  return { type: dtype, dims, data };
}

export function toNumbers({ type, data }: Value): Float64Array {
  if (type === "float16" && data instanceof Uint16Array) return Float64Array.from(data, fromHalf);
  return Float64Array.from(data as ArrayLike<number | bigint>, Number);
}

/** The sizes of one sample: the batch is 1, and what else is open is what `count` numbers leave. */
export function resolveDims(shape: Tensor["shape"], count: number | null): number[] {
  const dims = shape.map((size, axis) =>
    typeof size === "number" && size > 0 ? size : axis ? 0 : 1,
  );
  const known = countOf(dims.filter((size) => size > 0));
  const open = dims.indexOf(0);
  if (open >= 0 && count !== null && count % known === 0) dims[open] = count / known;
  return dims.map((size) => size || 1);
}

export function zeros(input: Tensor): Value {
  const dims = resolveDims(input.shape, null);
  return fromNumbers(new Float64Array(countOf(dims)), dims, input.dtype);
}

// IEEE 754 half precision, rounded to the nearest (ties away from zero).
function toHalf(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const size = Math.abs(value);
  if (Number.isNaN(value)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  if (size < 2 ** -14) return sign | Math.round(size * 2 ** 24);
  const exponent = Math.floor(Math.log2(size));
  return sign | (((exponent + 15) << 10) + Math.round((size / 2 ** exponent - 1) * 1024));
}

function fromHalf(bits: number): number {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const part = bits & 1023;
  if (exponent === 31) return part ? Number.NaN : sign * Infinity;
  return sign * (exponent ? (1 + part / 1024) * 2 ** (exponent - 15) : part * 2 ** -24);
}
