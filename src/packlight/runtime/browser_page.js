// Runs models in onnxruntime-web, in turns, and posts what they took. Opened by browser.py in a
// headless browser; it speaks to the server it came from and to nobody else.
import * as ort from "./ort.wasm.min.mjs";

const base = new URL(".", location.href).href;

// float16 has an array type of its own in new browsers only, and onnxruntime-web takes either.
const ARRAYS = {
  bool: Uint8Array, uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array,
  uint32: Uint32Array, int32: Int32Array, uint64: BigUint64Array, int64: BigInt64Array,
  float16: Uint16Array, float32: Float32Array, float64: Float64Array,
};

async function read(name) {
  const answer = await fetch(base + name);
  if (!answer.ok) throw new Error(`the page could not read ${name}`);
  return await answer.arrayBuffer();
}

async function post(value) {
  const body = JSON.stringify(value);
  await fetch(base + "answer", { method: "POST", body, headers: { "Content-Type": "application/json" } });
}

async function readFeeds(entries) {
  const feeds = {};
  for (const { name, dtype, shape, file } of entries) {
    feeds[name] = new ort.Tensor(dtype, new ARRAYS[dtype](await read(file)), shape);
  }
  return feeds;
}

function encode(tensor) {
  const { buffer, byteOffset, byteLength } = tensor.data;
  const bytes = new Uint8Array(buffer, byteOffset, byteLength);
  const parts = [];
  for (let start = 0; start < bytes.length; start += 0x8000) {
    parts.push(String.fromCharCode(...bytes.subarray(start, start + 0x8000)));
  }
  return { dtype: tensor.type, shape: [...tensor.dims], data: btoa(parts.join("")) };
}

// Every round runs each call once and begins with another one. First comes a warm-up: code that
// the browser has seen only a few times is not yet the code that it will run.
async function timeRounds(calls, { rounds, seconds, least }) {
  const limit = seconds === null ? Infinity : seconds * 1000;
  const warm = Math.min(limit / 10, 1000);
  let began = performance.now();
  do {
    for (const call of calls) await call();
  } while (performance.now() - began < warm);
  const table = calls.map(() => []);
  began = performance.now();
  for (let done = 1; done <= rounds; done++) {
    for (let turn = 0; turn < calls.length; turn++) {
      const which = (turn + done) % calls.length;
      const start = performance.now();
      await calls[which]();
      table[which].push(performance.now() - start);
    }
    if (done >= least && performance.now() - began > limit) break;
  }
  return table;
}

let place = { doing: "starting", file: 0 };
try {
  // It stays open for as long as this page lives, so that the server sees it end.
  fetch(base + "alive").catch(() => {});
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = base;
  ort.env.logLevel = "fatal";
  const job = JSON.parse(new TextDecoder().decode(await read("job.json")));
  const calls = [];
  const outputs = [];
  for (let file = 0; file < job.models.length; file++) {
    place = { doing: "loading", file };
    const model = new Uint8Array(await read(job.models[file].file));
    const session = await ort.InferenceSession.create(model, {
      executionProviders: ["wasm"], graphOptimizationLevel: "all", logSeverityLevel: 4,
    });
    const feeds = await readFeeds(job.models[file].feeds);
    place = { doing: "running", file };
    const found = await session.run(feeds);
    const kept = {};
    if (job.outputs) {
      for (const [name, tensor] of Object.entries(found)) {
        if (tensor.type in ARRAYS) kept[name] = encode(tensor);
      }
    }
    outputs.push(kept);
    calls.push(async () => {
      place.file = file;
      await session.run(feeds);
    });
  }
  const milliseconds = await timeRounds(calls, job);
  await post({ milliseconds, outputs, browser: navigator.userAgent });
} catch (error) {
  await post({ error: String(error?.message ?? error).slice(0, 4000), ...place });
}
