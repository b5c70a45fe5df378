from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from packlight.errors import UnusableProof
from packlight.graph.model import load_model
from packlight.proof import golden
from packlight.proof.golden import Golden, GoldenSample, read_golden, take_golden, write_golden
from packlight.proof.tolerance import OutputPromise
from packlight.samples import open_samples

PROMISE = OutputPromise("<y>", "float32", False, 1.0, 0.0, 0.1, 0.0, 0.1)


def build() -> Golden:
    one = GoldenSample(
        {"../x": np.arange(4, dtype=np.int64), "mask": np.array([True, False])},
        {"<y>": np.float32([[1, 2]]), "z": np.float32([[4, 5]])},
        # Another order, as the runtime of the compressed model may have it.
        {"z": np.float32([[6, 7]]), "<y>": np.float32([[1, 3]])},
    )
    return Golden((one, one), (PROMISE, replace(PROMISE, name="z")))


def test_what_is_written_is_read_and_the_bytes_are_the_same_again(tmp_path: Path) -> None:
    made = build()
    path = write_golden(made, tmp_path)
    first = path.read_bytes()
    found = read_golden(path, made.entry)
    assert len(found) == 2
    for part in ("feeds", "original", "compressed"):
        for name, array in getattr(made.samples[0], part).items():
            read = getattr(found[1], part)[name]
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, array)
    assert write_golden(made, tmp_path).read_bytes() == first
    with np.load(path, allow_pickle=False) as arrays:
        assert "s1_compressed0" in arrays.files and not any("x" in name for name in arrays.files)


def test_objects_packed_members_and_missing_arrays_are_refused(tmp_path: Path) -> None:
    made = build()
    path = write_golden(made, tmp_path)
    with np.load(path) as arrays:
        held = dict(arrays)
    np.savez(path, **{**held, "s0_input0": np.array([{}], object)})
    with pytest.raises(UnusableProof, match="pickled Python objects"):
        read_golden(path, made.entry)
    np.savez_compressed(path, **held)
    with pytest.raises(UnusableProof, match="packed"):
        read_golden(path, made.entry)
    held.pop("s1_original0")
    np.savez(path, **held)
    with pytest.raises(UnusableProof, match="lacks the array s1_original0"):
        read_golden(path, made.entry)
    for content in (b"", b"PK\x05\x06" + bytes(18), b"nonsense" * 100):
        path.write_bytes(content)
        with pytest.raises(UnusableProof):
            read_golden(path, made.entry)


def test_a_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build()
    path = write_golden(made, tmp_path)
    monkeypatch.setattr(golden, "MOST_FILE", 1000)
    monkeypatch.setattr(golden, "read_npz", None)
    with pytest.raises(UnusableProof, match="at most 1000"):
        read_golden(path, made.entry)


def test_a_bomb_is_refused_by_what_it_claims(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("s0_input0.npy", bytes(20 << 20))
    with pytest.raises(UnusableProof, match="packed"):
        read_golden(path, build().entry)


def test_samples_are_spread_and_no_larger_than_allowed(
    original: Path,
    rows: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = load_model(original).inputs
    samples = open_samples({"x": rows}, inputs)
    taken = take_golden(original, original, samples, range(40, 200), inputs)
    fed = np.concatenate([one.feeds["x"] for one in taken.samples])
    np.testing.assert_array_equal(fed, rows[40:200:20])
    (promise,) = taken.promises
    assert promise.classes and promise.tolerance == pytest.approx(promise.scale / 1000)
    # A sample has 16 numbers and twice 4 scores, four bytes each.
    monkeypatch.setattr(golden, "MOST_BYTES", 3 * 24 * 4)
    assert len(take_golden(original, original, samples, range(200), inputs).samples) == 3
    monkeypatch.setattr(golden, "MOST_BYTES", 1)
    assert len(take_golden(original, original, samples, range(200), inputs).samples) == 1
    monkeypatch.setattr(golden, "MOST_OF_ONE", 95)
    with pytest.raises(UnusableProof, match="one sample with its outputs has 96 bytes"):
        take_golden(original, original, samples, range(200), inputs)
