"""Compares the graph simplifiers that packlight could build on, on real models.

    python benchmarks/simplify.py ../shared/real/onnx ../shared/real/cifar10

For each model and tool: nodes left (all graphs, Constant nodes not counted), seconds, the
largest difference of the outputs relative to their size in onnxruntime with two batch sizes
where the batch is dynamic, and whether inputs, outputs and their axes were kept. Each run is a
process of its own, so that a native crash is a row of the table. The last lines give
what each tool needs installed. onnxslim comes from benchmarks/requirements.txt.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

TOOLS = ("onnxslim", "onnxscript", "packlight")
TENSOR_TYPES = {
    "tensor(float)": np.float32,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}


def simplify_with(tool: str, source: str, target: str) -> float:
    """Write `source`, simplified by `tool` with its defaults, to `target`; seconds it took."""
    if tool == "onnxslim":
        import onnxslim

        model = onnx.load(source)
        start = time.perf_counter()
        slim = onnxslim.slim(model)
        seconds = time.perf_counter() - start
        onnx.save(slim, target)
    elif tool == "onnxscript":
        import onnxscript.optimizer

        model = onnx.load(source)
        start = time.perf_counter()
        optimized = onnxscript.optimizer.optimize(model)
        seconds = time.perf_counter() - start
        onnx.save(optimized, target)
    else:
        from packlight.graph.model import load_model, save_model
        from packlight.graph.rewrite.simplify import simplify

        loaded = load_model(source)
        start = time.perf_counter()
        rewritten, _ = simplify(loaded.ir, check=None)
        seconds = time.perf_counter() - start
        save_model(rewritten, target)
    return seconds


def count_nodes(path: str) -> int:
    def count(graph: onnx.GraphProto) -> int:
        total = 0
        for node in graph.node:
            total += node.op_type != "Constant"
            total += sum(
                count(attribute.g) for attribute in node.attribute if attribute.HasField("g")
            )
        return total

    return count(onnx.load(path, load_external_data=False).graph)


def open_session(path: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def make_feeds(session: Any, batch: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    feeds = {}
    for item in session.get_inputs():
        shape = []
        for number, axis in enumerate(item.shape):
            name = str(axis).lower()
            if isinstance(axis, int):
                shape.append(axis)
            elif "past" in name:
                shape.append(4)
            elif "total" in name:
                shape.append(4 + 16)
            elif "batch" in name or number == (1 if item.name == "state" else 0):
                shape.append(batch)
            elif item.name == "input" and len(item.shape) == 2:
                shape.append(512)
            else:
                shape.append(16)
        dtype = TENSOR_TYPES[item.type]
        if item.name == "sr":
            feeds[item.name] = np.array(16000, dtype)
        elif np.issubdtype(dtype, np.integer):
            high = 2 if "mask" in item.name else 10
            feeds[item.name] = random.integers(1 if high == 2 else 0, high, shape).astype(dtype)
        else:
            feeds[item.name] = random.standard_normal(shape).astype(dtype)
    return feeds


def difference(source: str, target: str) -> tuple[float, str]:
    """The largest relative difference of any output, and what of the interface changed."""
    before, after = open_session(source), open_session(target)

    def interface(session: Any, part: str) -> list[tuple[str, str, tuple[Any, ...]]]:
        values = session.get_inputs() if part == "inputs" else session.get_outputs()
        return [(value.name, value.type, tuple(value.shape)) for value in values]

    changed = [p for p in ("inputs", "outputs") if interface(before, p) != interface(after, p)]
    worst = 0.0
    dynamic = any(isinstance(axis, str) for item in before.get_inputs() for axis in item.shape)
    for batch in (1, 3) if dynamic else (1,):
        feeds = make_feeds(before, batch, seed=batch)
        known = {item.name for item in after.get_inputs()}
        expected = before.run(None, feeds)
        found = after.run(None, {name: feed for name, feed in feeds.items() if name in known})
        for old, new in zip(expected, found, strict=True):
            if old.shape != new.shape:
                return float("inf"), "output shapes"
            scale = float(np.abs(old).max(initial=0.0)) or 1.0
            error = np.abs(old.astype(np.float64) - new.astype(np.float64)).max(initial=0.0)
            worst = max(worst, float(error) / scale)
    return worst, "+".join(changed) or "kept"


def measure(tool: str, source: Path) -> dict[str, Any]:
    """One row, made in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", tool, str(source)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"failed": lines[-1][:70]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def one(tool: str, source: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "simplified.onnx")
        seconds = simplify_with(tool, source, target)
        worst, kept = difference(source, target)
        nodes = count_nodes(target)
    print(json.dumps({"nodes": nodes, "seconds": seconds, "error": worst, "interface": kept}))


def installed_megabytes(*packages: str) -> float:
    files = [file for name in packages for file in importlib.metadata.files(name) or []]
    sizes = [Path(str(file.locate())).stat().st_size for file in files if file.locate().is_file()]
    return sum(sizes) / 1e6


def main(folders: list[str]) -> None:
    print(f"{'model':44} {'tool':11} {'nodes':>11} {'seconds':>8} {'error':>8}  interface")
    for folder in folders:
        for source in sorted(Path(folder).rglob("*.onnx")):
            before = count_nodes(str(source))
            for tool in TOOLS:
                row = measure(tool, source)
                head = f"{source.name:44} {tool:11}"
                if "failed" in row:
                    print(f"{head} failed: {row['failed']}", flush=True)
                    continue
                print(
                    f"{head} {before:5}>{row['nodes']:5} {row['seconds']:8.2f} {row['error']:8.1e}"
                    f"  {row['interface']}",
                    flush=True,
                )
    print(
        f"onnxslim needs  {installed_megabytes('onnxslim', 'sympy', 'mpmath'):6.1f} MB with sympy"
    )
    print(f"onnxscript needs {installed_megabytes('onnxscript'):5.1f} MB on top of onnx-ir")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--one":
        one(sys.argv[2], sys.argv[3])
    else:
        main(sys.argv[1:])
