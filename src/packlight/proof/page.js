
// Checks the folder that this page lies in: the manifest's seal, every file's hash, and what the
// model answers in this browser. It speaks to the server it came from and to nobody else. All text
// from files is put in as text, never as markup.
const base = new URL(".", location.href).href;
// packlight's own server opens the page under a name that no file can have, and wants to be told.
const served = decodeURIComponent(location.pathname).endsWith("/packlight:check.html");
const MOST_MANIFEST = 4 << 20;
const MOST_GOLDEN = 16 << 20;
const WARM_MS = 300;
const MEASURE_MS = 1200;
const OURS = ["golden.npz", "recipe.yaml", "report.html", "report.json", "verify.html"];
const place = (id) => document.getElementById(id);

class Missing extends Error {}

// Reading -----------------------------------------------------------------------------------------

async function read(name, most = Infinity) {
  let answer;
  try {
    answer = await fetch(base + name.split("/").map(encodeURIComponent).join("/"), { cache: "no-store" });
  } catch {
    throw new Missing(`${name} could not be read`);
  }
  if (!answer.ok) throw new Missing(`${name} is missing`);
  if (Number(answer.headers.get("Content-Length") ?? 0) > most) throw new Error(`${name} is too large`);
  const content = new Uint8Array(await answer.arrayBuffer());
  if (content.length > most) throw new Error(`${name} is too large`);
  return content;
}

function hex(bytes) {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// The browser's own SHA-256 exists on secure pages only (https, or this machine itself).
async function sha256(bytes) {
  if (globalThis.crypto?.subtle) return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
  return hex(ownSha256(bytes));
}

// FIPS 180-4: the constants are the first 32 bits of the fractional parts of roots of primes.
function ownSha256(bytes) {
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  const fraction = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32) >>> 0;
  const k = primes.map((p) => fraction(Math.cbrt(p)));
  const state = Uint32Array.from(primes.slice(0, 8), (p) => fraction(Math.sqrt(p)));
  const blocks = Math.ceil((bytes.length + 9) / 64);
  const tail = new Uint8Array(128);
  const whole = bytes.length - (bytes.length % 64);
  tail.set(bytes.subarray(whole));
  tail[bytes.length - whole] = 0x80;
  const end = (blocks - whole / 64) * 64;
  new DataView(tail.buffer).setUint32(end - 8, Math.floor((bytes.length * 8) / 2 ** 32));
  new DataView(tail.buffer).setUint32(end - 4, (bytes.length * 8) >>> 0);
  const w = new Uint32Array(64);
  const turn = (x, n) => (x >>> n) | (x << (32 - n));
  for (let block = 0; block < blocks; block++) {
    const [from, at] = block * 64 < whole ? [bytes, block * 64] : [tail, block * 64 - whole];
    for (let i = 0; i < 16; i++) {
      const b = at + i * 4;
      w[i] = (from[b] << 24) | (from[b + 1] << 16) | (from[b + 2] << 8) | from[b + 3];
    }
    for (let i = 16; i < 64; i++) {
      const x = w[i - 15], y = w[i - 2];
      w[i] = w[i - 16] + (turn(x, 7) ^ turn(x, 18) ^ (x >>> 3)) + w[i - 7] + (turn(y, 17) ^ turn(y, 19) ^ (y >>> 10));
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const one = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i]) | 0;
      const two = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((value, i) => { state[i] += value; });
  }
  const out = new Uint8Array(32);
  state.forEach((value, i) => new DataView(out.buffer).setUint32(4 * i, value));
  return out;
}

// The last line of a manifest is the SHA-256 of all that comes before it.
async function readSeal(content) {
  const length = '  "sha256": ""\n}\n'.length + 64;
  const cut = Math.max(0, content.length - length);
  const digest = await sha256(content.subarray(0, cut));
  const tail = new TextDecoder().decode(content.subarray(cut));
  return tail === `  "sha256": "${digest}"\n}\n` ? digest : null;
}

const ARRAYS = {
  "|b1": ["bool", Uint8Array], "|u1": ["uint8", Uint8Array], "|i1": ["int8", Int8Array],
  "<u2": ["uint16", Uint16Array], "<i2": ["int16", Int16Array], "<u4": ["uint32", Uint32Array],
  "<i4": ["int32", Int32Array], "<u8": ["uint64", BigUint64Array], "<i8": ["int64", BigInt64Array],
  "<f2": ["float16", Uint16Array], "<f4": ["float32", Float32Array], "<f8": ["float64", Float64Array],
};

// Arrays of an .npz file whose members are not packed: {name: {type, shape, data}}.
function readNpz(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const end = bytes.length - 22;
  if (view.getUint32(end, true) !== 0x06054b50) throw new Error("golden.npz is damaged");
  const arrays = new Map();
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    if (view.getUint32(at, true) !== 0x02014b50 || view.getUint16(at + 10, true) !== 0) throw new Error("golden.npz is packed or damaged");
    const size = view.getUint32(at + 24, true), nameLength = view.getUint16(at + 28, true);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength));
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    arrays.set(name.replace(/\.npy$/, ""), readNpy(bytes.slice(start, start + size)));
    at += 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return arrays;
}

function readNpy(bytes) {
  const header = new TextDecoder().decode(bytes.subarray(10, 10 + (bytes[8] | (bytes[9] << 8))));
  const found = header.match(/'descr': '([^']+)', 'fortran_order': False, 'shape': \(([\d, ]*)\)/);
  if (bytes[0] !== 0x93 || !found || !(found[1] in ARRAYS)) throw new Error("golden.npz holds an array of another kind");
  const [type, Kind] = ARRAYS[found[1]];
  const shape = found[2].split(",").map((text) => text.trim()).filter(Boolean).map(Number);
  const data = new Kind(bytes.slice(10 + header.length).buffer);
  if (data.length !== shape.reduce((a, b) => a * b, 1)) throw new Error("golden.npz is cut short");
  return { type, shape, data };
}

// Comparing: the rule of proof/tolerance.py -------------------------------------------------------

function numbers({ type, data }) {
  if (type === "float16" && data instanceof Uint16Array) {
    return Float64Array.from(data, (bits) => {
      const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, part = bits & 1023;
      if (exponent === 31) return part ? NaN : sign * Infinity;
      return sign * (exponent ? (1 + part / 1024) * 2 ** (exponent - 15) : part * 2 ** -24);
    });
  }
  return Float64Array.from(data, Number);
}

// Places of the largest and of the second largest value.
function topTwo(values) {
  let first = 0, second = -1;
  for (let i = 1; i < values.length; i++) {
    if (values[i] > values[first]) [first, second] = [i, first];
    else if (second < 0 || values[i] > values[second]) second = i;
  }
  return [first, second];
}

function compare(promise, pairs) {
  const found = { name: promise.name, largest: 0, classes: 0, same: 0, ties: 0, misplaced: false };
  for (const [promised, tensor] of pairs) {
    const shape = [...tensor.dims];
    if (tensor.type !== promised.type || String(shape) !== String(promised.shape)) {
      found.misplaced = true;
      continue;
    }
    const a = numbers(promised), b = numbers({ type: tensor.type, data: tensor.data });
    const floating = promised.type.startsWith("float");
    let unequal = 0;
    for (let i = 0; i < a.length; i++) {
      if (!floating) unequal += a[i] !== b[i];
      else if (Number.isFinite(a[i]) && Number.isFinite(b[i])) found.largest = Math.max(found.largest, Math.abs(a[i] - b[i]));
      else if (!Object.is(a[i], b[i])) found.misplaced = true;
    }
    if (unequal) found.largest = Math.max(found.largest, unequal / a.length);
    if (promise.classes && shape.length >= 2 && a.length) {
      const width = a.length / shape[0];
      for (let row = 0; row < shape[0]; row++) {
        const one = a.subarray(row * width, (row + 1) * width), other = b.subarray(row * width, (row + 1) * width);
        const [first, second] = topTwo(one);
        found.classes++;
        if (first === topTwo(other)[0]) found.same++;
        else if (one[first] - one[second] <= 2 * promise.tolerance) found.ties++;
      }
    }
  }
  found.share = promise.scale > 0 ? found.largest / promise.scale : found.largest;
  found.allowed = promise.scale > 0 ? promise.tolerance / promise.scale : promise.tolerance;
  found.within = !found.misplaced && found.largest <= promise.tolerance && found.same + found.ties === found.classes;
  return found;
}

// Running -----------------------------------------------------------------------------------------

const BACKENDS = [
  { name: "answers", title: "WebAssembly", provider: "wasm", build: "ort.wasm.min.mjs" },
  { name: "webgpu", title: "WebGPU", provider: "webgpu", build: "ort.webgpu.min.mjs" },
];

async function loadRuntime(build) {
  const address = `${base}ort/${build}`;
  const answer = await fetch(address).catch(() => null);
  if (!answer?.ok) return null;
  const ort = await import(address);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = `${base}ort/`;
  ort.env.logLevel = "fatal";
  return ort;
}

async function measure(calls) {
  const times = calls.map(() => []);
  let began = performance.now();
  do for (const call of calls) await call();
  while (performance.now() - began < WARM_MS);
  began = performance.now();
  do {
    for (const [which, call] of calls.entries()) {
      const start = performance.now();
      await call();
      times[which].push(performance.now() - start);
    }
  } while (times[0].length < 6 || performance.now() - began < MEASURE_MS);
  return times.map((row) => row.sort((a, b) => a - b)[row.length >> 1]);
}

async function runBackend(ort, backend, manifest, files, golden, original) {
  const options = { executionProviders: [backend.provider], graphOptimizationLevel: "all", logSeverityLevel: 4 };
  const parts = manifest.files.filter(({ name }) => name !== manifest.model && !OURS.includes(name));
  const externalData = parts.map(({ name }) => ({ path: name, data: files.get(name) }));
  const session = await ort.InferenceSession.create(files.get(manifest.model), { ...options, externalData });
  const { samples, inputs, outputs } = manifest.golden;
  const runs = [];
  let feeds;
  for (let n = samples - 1; n >= 0; n--) {
    feeds = {};
    inputs.forEach((name, i) => {
      const { type, shape, data } = golden.get(`s${n}_input${i}`);
      feeds[name] = new ort.Tensor(type, data, shape);
    });
    runs[n] = await session.run(feeds);
  }
  const differences = outputs.map((promise, j) => compare(
    promise,
    runs.map((run, n) => {
      if (!(promise.name in run)) throw new Error(`the model has no output ${promise.name}`);
      return [golden.get(`s${n}_compressed${j}`), run[promise.name]];
    }),
  ));
  const calls = [() => session.run(feeds)];
  if (original && backend.provider === "wasm") {
    const first = await ort.InferenceSession.create(original, options);
    calls.push(() => first.run(feeds));
  }
  return { differences, ms: await measure(calls) };
}

// Showing -----------------------------------------------------------------------------------------

// Control and direction characters are spelled out: names come from strangers.
function plain(text, most = 400) {
  const cut = text.length > most ? `${text.slice(0, most)}…` : text;
  return cut.replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
}

function element(tag, text, kind = "") {
  const made = document.createElement(tag);
  made.textContent = plain(String(text), 1500);
  if (kind) made.className = kind;
  return made;
}

const SIGNS = { passed: "✓", failed: "✗", "not-checked": "·" };
const WORDS = { passed: "passed: ", failed: "failed: ", "not-checked": "not checked: " };

let checks = [];
function tell(name, status, said, figures = {}) {
  checks.push({ name, status, said, figures });
  const item = element("li", "", status);
  const sign = element("span", SIGNS[status], "sign");
  sign.ariaHidden = "true";
  item.append(sign, element("span", name, "name"));
  const text = element("span", "", "said");
  text.append(element("span", WORDS[status], "hidden"), document.createTextNode(plain(said, 1500)));
  item.append(text);
  place("list").append(item);
  return status;
}

const percent = (share) => (share === 0 ? "0 %" : `${Number((100 * share).toPrecision(2))} %`);
const ms = (value) => (value === undefined ? "" : `${Number(value.toPrecision(3))} ms`);

function size(bytes) {
  for (const [unit, most] of [["bytes", 1e3], ["KB", 1e6], ["MB", 1e9], ["GB", Infinity]]) {
    if (bytes < most) return unit === "bytes" ? `${bytes} bytes` : `${Number((bytes / (most === Infinity ? 1e9 : most / 1e3)).toPrecision(3))} ${unit}`;
  }
}

function showClaims(manifest) {
  const { claims, made_on: machine } = manifest;
  const number = (key, which) => (Number.isFinite(claims[key]?.[which]) ? claims[key][which] : undefined);
  const rows = [["model", `${claims.model ?? ""}, for ${claims.target ?? ""}`], ["verdict", `${claims.verdict ?? ""}: ${claims.reason ?? ""}`]];
  const pair = (title, key, write) => {
    const before = number(key, "original"), after = number(key, "compressed");
    if (before !== undefined && after !== undefined) rows.push([title, `${write(before)} before, ${write(after)} after`]);
  };
  pair("size", "size_bytes", size);
  pair("one run", "latency_ms", ms);
  pair("memory", "peak_memory_bytes", size);
  if (typeof claims.metric?.name === "string") pair(claims.metric.name, "metric", (share) => String(Number(share.toPrecision(4))));
  rows.push(["made with", Object.entries(machine).map((pair) => pair.join(" ")).join("; ")]);
  place("facts").replaceChildren(...rows.map(([term, said]) => {
    const row = element("div", "");
    row.append(element("dt", term), element("dd", said));
    return row;
  }));
  place("claims").hidden = false;
  place("subject").textContent = plain(String(claims.model ?? ""), 120);
}

function conclude() {
  const failed = checks.filter(({ status }) => status === "failed").map(({ name }) => name);
  const answered = checks.some(({ name, status }) => name === "answers" && status === "passed");
  const verdict = failed.length ? "failed" : answered ? "proven" : "intact";
  let said = {
    proven: "Proven: the files are as they were written, and the model gives the answers promised.",
    intact: "Intact: the files are as they were written; the model's answers were not checked.",
    failed: "Failed: something is not as it was promised.",
  }[verdict];
  if (failed.length === 1 && failed[0] === "webgpu" && answered) {
    said = "On WebGPU this model gives other answers than promised; in WebAssembly it keeps its promise.";
  }
  place("badge").hidden = false;
  place("badge").className = `badge ${verdict}`;
  place("badge").textContent = { proven: "✓ Proven", intact: "◐ Intact", failed: "✕ Failed" }[verdict];
  place("headline").textContent = said;
  place("reason").textContent = verdict === "failed"
    ? `What failed: ${failed.join(", ")}. Do not rely on this folder before you know why.`
    : "The seal below is the same wherever the folder is the same, byte for byte.";
  document.title = `${verdict}: packlight`;
  document.body.dataset.verdict = verdict;
}

// The story ---------------------------------------------------------------------------------------

async function checkManifest() {
  let content;
  try {
    content = await read("manifest.json", MOST_MANIFEST);
  } catch (error) {
    const opened = location.protocol === "file:";
    tell("manifest", "failed", opened
      ? "A page that was opened from the disk may not read the files beside it: run packlight verify DIR --browser, or any static server in the folder (python3 -m http.server)."
      : `${error.message}. Without a manifest there is nothing to hold the files against.`);
    return null;
  }
  const seal = await readSeal(content);
  if (!seal) {
    tell("manifest", "failed", "manifest.json was changed or cut short: its seal is broken.");
    return null;
  }
  const manifest = JSON.parse(new TextDecoder().decode(content));
  if (manifest.schema !== 1) {
    tell("manifest", "failed", "manifest.json is of a schema that this page does not know.");
    return null;
  }
  const names = manifest.files.map(({ name }) => name);
  if (names.some((name) => !name || /[/\\:]/.test(name) || name.startsWith("..") || name === ".")) {
    tell("manifest", "failed", "manifest.json names a file that it may not: it lies outside the folder.");
    return null;
  }
  place("seal").textContent = `Seal: ${seal}`;
  tell("manifest", "passed", `It lists ${names.length} files; its seal holds.`);
  showClaims(manifest);
  return { manifest, seal };
}

async function checkFiles(manifest) {
  const complaints = [];
  const files = new Map();
  let total = 0;
  for (const { name, size_bytes: promised, sha256: digest } of manifest.files) {
    place("reason").textContent = `Reading ${plain(name, 100)}…`;
    try {
      const content = await read(name);
      if (content.length !== promised) complaints.push(`${name} has ${content.length} bytes instead of ${promised}`);
      else if ((await sha256(content)) !== digest) complaints.push(`${name} was changed: its SHA-256 is another`);
      files.set(name, content);
      total += content.length;
    } catch (error) {
      complaints.push(error.message);
    }
  }
  if (complaints.length) {
    tell("files", "failed", `${complaints.slice(0, 5).join("; ")}.`, { complaints: complaints.length });
    return null;
  }
  tell("files", "passed", `All ${files.size} files (${size(total)}) are as they were written. Files that the manifest does not list cannot be seen from here.`);
  return files;
}

function describe(differences, samples) {
  const wrong = differences.filter(({ within }) => !within);
  const by = (one) => one.allowed ? one.share / one.allowed : one.largest ? Infinity : 0;
  const worst = [...(wrong.length ? wrong : differences)].sort((a, b) => by(b) - by(a))[0];
  const ranked = [...wrong, ...differences].find(({ classes }) => classes);
  let said = `${samples} golden sample${samples === 1 ? "" : "s"}: `;
  said += worst.misplaced
    ? `output ${worst.name} has another shape or type than promised, or is not finite where it should be`
    : `outputs differ by at most ${percent(worst.share)} of their range (${percent(worst.allowed)} allowed)`;
  if (ranked) said += `; the same class on ${ranked.same} of ${ranked.classes}`;
  if (ranked?.ties) said += `, a near tie on ${ranked.ties}`;
  return { said: `${said}.`, worst, ranked, wrong: wrong.length > 0 };
}

async function checkAnswers(manifest, files) {
  if (manifest.kind !== "graph" || !manifest.golden) {
    const why = manifest.kind === "graph" ? `The folder holds no golden samples: ${manifest.note || "nobody says why"}.` : "Language models are not run by this page.";
    tell("answers", "not-checked", why);
    return;
  }
  if (files.get("golden.npz").length > MOST_GOLDEN) throw new Error("golden.npz is too large");
  const golden = readNpz(files.get("golden.npz"));
  const original = served ? await read("original/model.onnx").catch(() => null) : null;
  for (const backend of BACKENDS) {
    place("reason").textContent = `Running the model in ${backend.title}…`;
    let ort = null;
    if (backend.provider === "webgpu") {
      const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
      if (!adapter) {
        tell(backend.name, "not-checked", "This browser, or this machine, has no WebGPU.");
        continue;
      }
    }
    ort = await loadRuntime(backend.build).catch(() => null);
    if (!ort) {
      tell(backend.name, "not-checked", `The model was not run in ${backend.title}: onnxruntime-web is not beside this page (ort/${backend.build}). packlight verify DIR --browser brings it where npm's package onnxruntime-web is installed; any server may, as ort/.`);
      continue;
    }
    let found;
    try {
      found = await runBackend(ort, backend, manifest, files, golden, original);
    } catch (error) {
      const status = backend.provider === "wasm" ? "failed" : "not-checked";
      tell(backend.name, status, `The model does not run in ${backend.title}: ${String(error?.message ?? error).slice(0, 300)}`);
      continue;
    }
    const { said, worst, ranked, wrong } = describe(found.differences, manifest.golden.samples);
    const figures = { largest_difference: worst.largest, share_of_range: worst.share, allowed_share: worst.allowed, ms: found.ms[0], original_ms: found.ms[1] ?? null, same_class: ranked?.same ?? null, classes: ranked?.classes ?? null };
    const title = `${backend.title}: ${wrong ? "other answers than promised. " : ""}`;
    const time = ` ${ms(found.ms[0])} a run${found.ms[1] ? `, the original ${ms(found.ms[1])}` : ""}.`;
    tell(backend.name, wrong ? "failed" : "passed", title + said + time, figures);
    const row = element("tr", "");
    row.append(element("th", backend.title), element("td", wrong ? "others than promised" : "as promised", wrong ? "change worse" : "change better"));
    for (const cell of [worst.misplaced ? "" : percent(worst.share), percent(worst.allowed), ms(found.ms[0]), ms(found.ms[1])]) row.append(element("td", cell, "number"));
    row.firstChild.scope = "row";
    place("table").append(row);
    place("runs").hidden = false;
  }
}

async function check() {
  checks = [];
  for (const id of ["list", "table"]) place(id).replaceChildren();
  for (const id of ["badge", "runs", "claims"]) place(id).hidden = true;
  place("again").disabled = true;
  place("headline").textContent = "Checking this folder…";
  let sealed = null;
  try {
    sealed = await checkManifest();
    const files = sealed && (await checkFiles(sealed.manifest));
    if (files) await checkAnswers(sealed.manifest, files);
    else tell("answers", "not-checked", "Not looked at, since the files are not those that were written.");
  } catch (error) {
    tell("page", "failed", `The check broke off: ${String(error?.message ?? error).slice(0, 300)}`);
  }
  conclude();
  place("again").disabled = false;
  if (served) {
    const body = JSON.stringify({ checks, seal: sealed?.seal ?? "", browser: navigator.userAgent });
    await fetch(`${base}answer`, { method: "POST", body, headers: { "Content-Type": "application/json" } }).catch(() => {});
  }
}

if (served) fetch(`${base}alive`).catch(() => {});
place("again").addEventListener("click", check);
check();
