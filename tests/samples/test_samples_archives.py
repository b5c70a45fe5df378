"""Array files, whole and hostile."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from packlight.errors import UnusableSamples
from packlight.samples import archives, open_samples
from packlight.tensors import TensorSpec

SPEC = TensorSpec("x", "float32", ("batch", 4))


class Exploding:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_npy_and_npz_are_read(tmp_path):
    data = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.save(tmp_path / "a.npy", data)
    np.savez(tmp_path / "b.npz", x=data, labels=np.arange(6))
    np.savez_compressed(tmp_path / "c.npz", x=np.asfortranarray(data))
    for name in ("a.npy", "b.npz", "c.npz"):
        samples = open_samples(str(tmp_path / name), [SPEC])
        assert np.array_equal(samples.read([5, 0])["x"], data[[5, 0]])
        assert name in samples.source
    assert np.array_equal(open_samples(tmp_path / "b.npz", [SPEC]).labels, np.arange(6))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_large_members_are_mapped_not_read(tmp_path, monkeypatch, save):
    monkeypatch.setattr(archives, "_MAPPED_FROM", 1)
    monkeypatch.setattr(archives, "_SPOOLED_FROM", 1)
    data = np.arange(400, dtype=np.float64).reshape(100, 4)
    save(tmp_path / "a.npz", first=np.ones(3, np.int8), x=data, y=np.asfortranarray(data))
    arrays = archives.read_npz(tmp_path / "a.npz")
    assert np.array_equal(arrays["x"], data) and np.array_equal(arrays["y"], data)
    assert "mmap" in repr(type(_root(arrays["x"])))


def _root(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return getattr(array, "obj", array)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_pickles_are_refused_unread(tmp_path, name):
    save = np.save if name.endswith("npy") else np.savez
    save(tmp_path / name, np.array([Exploding()], dtype=object), allow_pickle=True)
    with pytest.raises(UnusableSamples, match=f"{name}.*pickled Python objects"):
        open_samples(tmp_path / name, [SPEC])


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.95])
def test_truncated_files_are_refused_by_name(tmp_path, name, keep):
    (np.save if name.endswith("npy") else np.savez)(tmp_path / name, np.ones((100, 4)))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UnusableSamples, match=name):
        open_samples(tmp_path / name, [SPEC])


def test_garbage_and_a_flipped_byte_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no archive at all" * 10)
    with pytest.raises(UnusableSamples, match=r"a\.npz cannot be read as an array file"):
        open_samples(tmp_path / "a.npz", [SPEC])
    np.savez(tmp_path / "b.npz", x=np.ones((100, 4), np.float32))
    content = bytearray((tmp_path / "b.npz").read_bytes())
    content[700] ^= 1
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(UnusableSamples, match=r"b\.npz"):
        open_samples(tmp_path / "b.npz", [SPEC])


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path):
    header = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 4)}
    np.lib.format.write_array_header_1_0(header, fields)
    (tmp_path / "a.npy").write_bytes(header.getvalue() + bytes(64))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(UnusableSamples, match="damaged: its header promises"):
            open_samples(tmp_path / name, [SPEC])


def test_a_zip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_BOMB_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "_BOMB_RATIO", 100)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1 << 19, 4), np.float32))
    with pytest.raises(UnusableSamples, match="zip bomb"):
        open_samples(tmp_path / "a.npz", [SPEC])


def test_too_many_members_and_too_much_in_all_are_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for number in range(1001):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(UnusableSamples, match="1001 arrays, more than 1000"):
        open_samples(tmp_path / "many.npz", [SPEC])
    monkeypatch.setattr(archives, "_TOTAL", 100)
    np.savez(tmp_path / "big.npz", x=np.ones((100, 4)))
    with pytest.raises(UnusableSamples, match=r"big\.npz unpacks to"):
        open_samples(tmp_path / "big.npz", [SPEC])


def test_records_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3, dtype=[("a", "f4"), ("b", "f4")]))
    with pytest.raises(UnusableSamples, match="records with fields"):
        open_samples(tmp_path / "a.npy", [SPEC])


def test_paths_that_are_no_samples_are_refused(tmp_path):
    with pytest.raises(UnusableSamples, match=r"gone\.npz don't exist"):
        open_samples(tmp_path / "gone.npz", [SPEC])
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UnusableSamples, match=r"a\.txt is of no kind.*\.npz"):
        open_samples(tmp_path / "a.txt", [SPEC])
    (tmp_path / "b.npz").touch()
    with pytest.raises(UnusableSamples, match=r"b\.npz is empty"):
        open_samples(tmp_path / "b.npz", [SPEC])


def test_an_archive_without_arrays_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w"):
        pass
    with pytest.raises(UnusableSamples, match=r"a\.npz holds no arrays.*x: float32"):
        open_samples(tmp_path / "a.npz", [SPEC])
