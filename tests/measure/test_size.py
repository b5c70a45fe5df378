from __future__ import annotations

from pathlib import Path

import pytest

from packlight.errors import UnusableModel
from packlight.measure.size import size_of_files


def test_each_file_counts_once(tmp_path: Path) -> None:
    model, weights = tmp_path / "m.onnx", tmp_path / "m.data"
    model.write_bytes(b"x" * 10)
    weights.write_bytes(b"y" * 1000)
    link = tmp_path / "link.data"
    link.symlink_to(weights)
    assert size_of_files([model]) == 10
    assert size_of_files([model, weights]) == 1010
    assert size_of_files([model, weights, model, link]) == 1010
    assert size_of_files([]) == 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableModel, match=r"absent\.data"):
        size_of_files([tmp_path / "absent.data"])
