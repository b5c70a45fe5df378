import { copyFileSync, mkdirSync } from "node:fs";
import { defineConfig, type Plugin } from "vite";

const PAGE = new URL("../src/packlight/serve/page/", import.meta.url).pathname;
const RUNTIME = new URL("node_modules/onnxruntime-web/dist/", import.meta.url).pathname;
const RUNTIME_FILES = [
  "ort.wasm.min.mjs",
  "ort-wasm-simd-threaded.mjs",
  "ort-wasm-simd-threaded.wasm",
];

// onnxruntime-web loads its own parts by name, so they stay files of their own.
const copyRuntime: Plugin = {
  name: "copy-onnxruntime-web",
  apply: "build",
  closeBundle() {
    mkdirSync(`${PAGE}ort`, { recursive: true });
    for (const name of RUNTIME_FILES) copyFileSync(RUNTIME + name, `${PAGE}ort/${name}`);
  },
};

export default defineConfig({
  build: {
    outDir: PAGE,
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // the page's policy takes files, nothing inline
    modulePreload: { polyfill: false },
  },
  worker: { format: "es" },
  plugins: [copyRuntime],
});
