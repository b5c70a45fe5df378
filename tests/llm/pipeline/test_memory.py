"""A checkpoint larger than memory is compressed: tensor by tensor, some rows at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from folder_bench import write_hollow_llama

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
    command = [sys.executable, "-c", PROGRAM, str(folder), str(tmp_path / "out"), str(LIMIT)]
    # A thread's arena is address space that is set aside, not memory in use.
    env = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        command, check=False, timeout=300, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out").stat().st_size > 40 << 20
