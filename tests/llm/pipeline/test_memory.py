"""Memory: checkpoints larger than it are compressed, and what it takes with a text is forecast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from folder_bench import write_hollow_llama, write_tall_llama

LIMIT = 56 << 20
PROGRAM = """
import resource, sys
from pathlib import Path
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.compress import compress_checkpoint, uniform_types

checkpoint = open_checkpoint(sys.argv[1])
assert checkpoint.size_bytes > 3 * int(sys.argv[3])
status = Path("/proc/self/status").read_text()
used = 1024 * int(status.split("VmData:")[1].split()[0])
limit = used + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
compress_checkpoint(checkpoint, Path(sys.argv[2]), uniform_types(checkpoint, "Q8_0"))
"""


def test_a_model_three_times_as_large_as_the_memory_is_compressed(tmp_path: Path) -> None:
    folder = write_hollow_llama(tmp_path / "model", feed_forward=120_000)
    run(PROGRAM, folder, tmp_path / "out", LIMIT)
    assert (tmp_path / "out").stat().st_size > 40 << 20


def run(program: str, *arguments: object) -> str:
    """What a process of its own prints."""
    # A thread's arena is address space that is set aside, not memory in use.
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        check=False, timeout=120, capture_output=True, text=True,
        env={**os.environ, **threads, "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


WITH_TEXT = """
import json, resource, sys
from pathlib import Path
import numpy as np
import scipy.linalg
import torch
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm import compress_gguf
from packlight.llm.compress import compress_checkpoint, uniform_types
from packlight.llm.compress_forecast import forecast_compression
from packlight.llm.text import Windows

checkpoint = open_checkpoint(sys.argv[1])
compress_gguf.SMALL = 0  # one beginning of descent, as for large models
count = int(sys.argv[4])
draw = np.random.default_rng(0).integers(0, 300, (count + 4, 32)).astype(np.int32)
windows = Windows("drawn", draw[:count], draw[count : count + 2], draw[count + 2 :], draw.size)
# Rounding takes long: two tensors show what memory it needs.
types = uniform_types(checkpoint, "F16")
types |= {f"blk.0.{name}.weight": "Q4_0" for name in ("attn_q", "ffn_down")}
said = forecast_compression(checkpoint, types, tokens=int(windows.calibration.size))
# What libraries set aside when they are first used is no part of it, and where it cannot be had
# OpenBLAS, of which NumPy and SciPy have one each, tries for ever.
some = torch.ones((300, 300), requires_grad=True)
(some @ some).sum().backward()
np.linalg.cholesky(np.eye(300) @ np.eye(300))
scipy.linalg.cholesky(np.eye(300))
limit = int(sys.argv[3])
if limit:
    assert checkpoint.size_bytes > 3 * limit
    status = Path("/proc/self/status").read_text()
    used = 1024 * int(status.split("VmData:")[1].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
compress_checkpoint(checkpoint, Path(sys.argv[2]), types, windows=windows)
# Not getrusage, which begins with what the process had that started this one.
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps([said.memory_bytes, 1024 * int(peak.split()[1])]))
"""


def test_with_a_text_memory_stays_below_what_was_said_before(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="blocks are computed with PyTorch")
    folder = write_tall_llama(tmp_path / "model", 2, 256, 1024)
    said, after = json.loads(run(WITH_TEXT, folder, tmp_path / "out", 0, 2))
    assert after < said < after + (200 << 20)  # enough, and not far more than that


def test_logits_of_a_large_vocabulary_are_never_all_there(tmp_path: Path) -> None:
    """Those of all 1,024 tokens would be several arrays of 200 MB."""
    pytest.importorskip("torch", reason="blocks are computed with PyTorch")
    folder = write_tall_llama(tmp_path / "model", 1, 64, 96, vocabulary=50_000)
    said, after = json.loads(run(WITH_TEXT, folder, tmp_path / "out", 0, 32))
    assert after < said < after + (300 << 20)
    assert said < 1 << 30


WITH_WORKERS = """
import json, sys
from functools import partial
from pathlib import Path
import numpy as np
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.compress import Settings, compress_checkpoint, uniform_types
from packlight.llm.compress_forecast import forecast_workers
from packlight.llm.text import Windows
from packlight.plan.workers import run_in_turn, run_tasks

checkpoint = open_checkpoint(sys.argv[1])
draw = np.random.default_rng(0).integers(0, 300, (70, 64)).astype(np.int32)
windows = Windows("drawn", draw[:66], draw[66:68], draw[68:], draw.size)
said = forecast_workers(checkpoint, tokens=int(windows.calibration.size)).memory_bytes
types = uniform_types(checkpoint, "F16")
types |= dict.fromkeys(["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"], "Q4_0")
compress_checkpoint(
    checkpoint, Path(sys.argv[2]), types, windows=windows,
    settings=Settings(curvature_tokens=512), spread=partial(run_in_turn, workers=2),
)
status = run_tasks(Path.read_text, [Path("/proc/self/status")] * 4, workers=2)
peaks = [int(text.split("VmHWM:")[1].split()[0]) for text in status]
print(json.dumps([said, 1024 * max(peaks)]))
"""


def test_a_worker_s_memory_stays_below_what_was_said_before(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="blocks are computed with PyTorch")
    folder = write_tall_llama(tmp_path / "model", 1, 256, 2816)
    said, after = json.loads(run(WITH_WORKERS, folder, tmp_path / "out"))
    assert after < said < after + (400 << 20)


def test_with_a_text_a_model_three_times_as_large_as_the_memory_is_compressed(
    tmp_path: Path,
) -> None:
    """Blocks, and what gradients say of each, are not held together: either would not fit."""
    pytest.importorskip("torch", reason="blocks are computed with PyTorch")
    folder = write_tall_llama(tmp_path / "model", 92, 256, 256)
    run(WITH_TEXT, folder, tmp_path / "out", 104 << 20, 2)
    assert (tmp_path / "out").stat().st_size > 80 << 20
