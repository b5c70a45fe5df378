import { copyFileSync, mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vite";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const PAGE = `${HERE}../src/packlight/serve/page/`;
const RUNTIME = `${HERE}node_modules/onnxruntime-web/dist/`;
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
    copyFileSync(HERE + "onnxruntime.license.txt", `${PAGE}ort/LICENSE.txt`);
  },
};

export default defineConfig({
  build: {
    outDir: PAGE,
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // the page's policy takes files, nothing inline
    modulePreload: { polyfill: false },
    license: { fileName: "assets/licenses.md" },
  },
  worker: { format: "es" },
  plugins: [copyRuntime],
});
