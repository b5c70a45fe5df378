from __future__ import annotations

import math
from pathlib import Path

import pytest

from packlight.errors import WrongUsage
from packlight.runtime.limits import Limits, machine_memory_bytes, memory_limit_bytes


def test_default_is_a_share_of_the_machine() -> None:
    total = machine_memory_bytes()
    assert total / 2 < memory_limit_bytes(Limits()) < total
    assert memory_limit_bytes(Limits(memory_bytes=12345)) == 12345


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_container_limit_counts_where_it_is_smaller(tmp_path: Path, name: str) -> None:
    file = tmp_path / "sys/fs/cgroup" / name
    file.parent.mkdir(parents=True)
    file.write_text(f"{1 << 20}\n")
    assert machine_memory_bytes(tmp_path) == 1 << 20
    for no_limit in ("max\n", f"{1 << 63}\n", ""):
        file.write_text(no_limit)
        assert machine_memory_bytes(tmp_path) == machine_memory_bytes(tmp_path / "absent")


def test_limits_are_positive() -> None:
    for wrong in (0, -1):
        with pytest.raises(WrongUsage, match="positive"):
            Limits(memory_bytes=wrong)
    for seconds in (0.0, -1.0, math.nan):
        with pytest.raises(WrongUsage, match="positive"):
            Limits(seconds=seconds)
    assert Limits(seconds=math.inf).seconds == math.inf
