from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import packlight
from packlight.errors import PacklightError, UnusableOutput, UnusablePack
from packlight.transport import container, packed_size
from packlight.transport.container import MAGIC, VERSION, Entry, write_head

WriteFolder = Callable[[Path], Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def seal(rest: bytes) -> bytes:
    """A file whose checksum is right, whatever it holds."""
    return MAGIC + bytes([VERSION]) + hashlib.sha256(rest).digest() + rest


def test_a_folder_comes_back_byte_for_byte(tmp_path: Path, write_folder: WriteFolder) -> None:
    folder = write_folder(tmp_path / "net.packed")
    done = packlight.pack(folder)
    assert done.path == tmp_path / "net.packed.plz"
    assert done.packed_bytes == done.path.stat().st_size < done.size_bytes / 2
    assert done.left_out == ("report.html", "report.json")
    assert {file.name for file in done.files} == {"empty.txt", "model.onnx", "recipe.yaml"}
    (model,) = (file for file in done.files if file.name == "model.onnx")
    assert {"predicted", "scaled"} <= set(model.methods)
    back = packlight.unpack(done.path, tmp_path / "back")
    kept = {k: v for k, v in contents(folder).items() if not k.startswith("report")}
    assert contents(back.path) == kept
    assert (back.size_bytes, back.packed_bytes) == (done.size_bytes, done.packed_bytes)
    whole = packlight.pack(folder, tmp_path / "all.plz", with_report=True)
    packlight.unpack(whole.path, tmp_path / "all")
    assert contents(tmp_path / "all") == contents(folder) and not whole.left_out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "all", "all.plz", "back", "net.packed", "net.packed.plz",
    ]  # fmt: skip


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path, write_folder: WriteFolder) -> None:
    folder = write_folder(tmp_path / "a")
    one = packlight.pack(folder, tmp_path / "1.plz").path.read_bytes()
    assert packlight.pack(folder, tmp_path / "2.plz").path.read_bytes() == one


def test_these_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "recipe.yaml").write_bytes(b"schema: 1\nseed: 0\n")
    coded = packlight.pack(tmp_path / "a", tmp_path / "a.plz").path.read_bytes()
    assert coded.hex() == GOLDEN
    packlight.unpack(tmp_path / "a.plz", tmp_path / "b")
    assert contents(tmp_path / "b") == {"recipe.yaml": b"schema: 1\nseed: 0\n"}


def test_the_size_is_that_of_the_packed_folder(tmp_path: Path, write_folder: WriteFolder) -> None:
    """Recipe included: a limit on the download is kept by the very file that `pack` writes."""
    folder = write_folder(tmp_path / "a")
    (folder / "empty.txt").unlink()
    texts = {"recipe.yaml": (folder / "recipe.yaml").read_text()}
    size = packed_size([folder / "model.onnx"], texts=texts)
    assert size == packlight.pack(folder).path.stat().st_size


GOLDEN = (
    "504c5a01ef6d8ecfbabbfe8ff7d778db113d6bd059d27df8e0e57e78d145bdaf0267ab31210f079078340048"
    "c39bed87575ff93e8c7c25c9706697f9b9e22235a7314775aa7167a3c0e9c6d0d5ea4f3bfea5ec9de3"
)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    whole = bytes.fromhex(GOLDEN)
    file = tmp_path / "a.plz"
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(UnusablePack):
            packlight.unpack(file, tmp_path / "b")
        file.write_bytes(whole[:at])
        with pytest.raises(UnusablePack):
            packlight.unpack(file, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.plz"]


def test_with_a_right_checksum_a_changed_byte_is_an_error_or_harmless(
    tmp_path: Path, write_folder: WriteFolder
) -> None:
    done = packlight.pack(write_folder(tmp_path / "a"))
    rest = done.path.read_bytes()[36:]
    packlight.unpack(done.path, tmp_path / "true")
    wanted = contents(tmp_path / "true")
    refused = 0
    file = tmp_path / "b.plz"
    for n, at in enumerate([0, 2, 4, *range(6, len(rest), len(rest) // 5)]):
        file.write_bytes(seal(rest[:at] + bytes([rest[at] ^ 1 << n % 8]) + rest[at + 1 :]))
        out = tmp_path / f"b{n}"
        try:
            packlight.unpack(file, out)
            assert contents(out) == wanted
        except UnusablePack:
            refused += 1
            assert not out.exists()
    assert refused > 5


@pytest.mark.parametrize(
    "name",
    ["../a", "/etc/a", "a/b", "..", ".", "", "a\\b", "c:a", "nul", "CON.txt", "a\0b", "a\nb", "a.",
     "x" * 256, "a\u202eb"],
)  # fmt: skip
def test_names_that_are_no_plain_names_are_refused(tmp_path: Path, name: str) -> None:
    entry = Entry(name, 1, (), (), hashlib.sha256(b"x").digest())
    (tmp_path / "a.plz").write_bytes(seal(write_head([entry], b"x")))
    with pytest.raises(UnusablePack):
        packlight.unpack(tmp_path / "a.plz", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.plz"]


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"x").digest()
    entries = [Entry(name, 1, (), (), digest) for name in ("Model.onnx", "model.onnx")]
    (tmp_path / "a.plz").write_bytes(seal(write_head(entries, b"xx")))
    with pytest.raises(UnusablePack, match="same name"):
        packlight.unpack(tmp_path / "a.plz")


def test_sizes_that_do_not_add_up_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"x").digest()
    for entry in (Entry("a", 2, (), (), digest), Entry("a", 1 << 45, (), (), digest)):
        (tmp_path / "a.plz").write_bytes(seal(write_head([entry], b"x")))
        with pytest.raises(UnusablePack):
            packlight.unpack(tmp_path / "a.plz")
    entry = Entry("a", 1, (), (), hashlib.sha256(b"y").digest())
    (tmp_path / "a.plz").write_bytes(seal(write_head([entry], b"x")))
    with pytest.raises(UnusablePack, match="a does not come out as it went in"):
        packlight.unpack(tmp_path / "a.plz")
    (tmp_path / "a.plz").write_bytes(seal(b"\xff" * 9 + b"\x7f"))
    with pytest.raises(UnusablePack, match="damaged"):
        packlight.unpack(tmp_path / "a.plz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.plz"]


def test_another_format_or_version_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.plz"
    file.write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(UnusablePack, match="not a transport file"):
        packlight.unpack(file)
    file.write_bytes(MAGIC + b"\x07" + bytes(60))
    with pytest.raises(UnusablePack, match="version 7"):
        packlight.unpack(file)
    with pytest.raises(UnusablePack, match="cannot be opened"):
        packlight.unpack(tmp_path / "none.plz")
    with pytest.raises(UnusablePack, match="not an ordinary file"):
        packlight.unpack(tmp_path)


def test_only_plain_files_are_packed(tmp_path: Path, write_folder: WriteFolder) -> None:
    folder = write_folder(tmp_path / "a")
    (folder / "link").symlink_to(folder / "model.onnx")
    with pytest.raises(UnusablePack, match=r"link is a link"):
        packlight.pack(folder)
    (folder / "link").unlink()
    (folder / "sub").mkdir()
    with pytest.raises(UnusablePack, match=r"sub is a folder"):
        packlight.pack(folder)
    (folder / "sub").rmdir()
    os.mkfifo(folder / "pipe")
    with pytest.raises(UnusablePack, match="not an ordinary file"):
        packlight.pack(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(UnusablePack, match="holds 0 files"):
        packlight.pack(tmp_path / "none")
    with pytest.raises(UnusablePack, match="does not exist"):
        packlight.pack(tmp_path / "nowhere")
    assert not list(tmp_path.glob("*.plz"))


def test_nothing_is_overwritten(tmp_path: Path, write_folder: WriteFolder) -> None:
    folder = write_folder(tmp_path / "a")
    file = packlight.pack(folder).path
    before = file.read_bytes()
    with pytest.raises(UnusableOutput, match="--force"):
        packlight.pack(folder)
    assert packlight.pack(folder, force=True).path.read_bytes() == before
    with pytest.raises(UnusableOutput, match="exists"):
        packlight.unpack(file)
    (tmp_path / "link").symlink_to(tmp_path / "free")
    with pytest.raises(UnusableOutput, match="exists"):
        packlight.unpack(file, tmp_path / "link")
    with pytest.raises(UnusableOutput, match="one of the files"):
        packlight.pack(folder, folder / "model.onnx", force=True)


def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "a")
    file = packlight.pack(folder).path

    def fail(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("packlight.transport.folder.decode_file", fail)
    with pytest.raises(UnusableOutput, match="No space left"):
        packlight.unpack(file, tmp_path / "b")
    monkeypatch.setattr("packlight.transport.folder.encode_file", fail)
    with pytest.raises(PacklightError):
        packlight.pack(folder, tmp_path / "c.plz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.plz"]


def test_a_large_file_is_packed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packlight.transport.plan.MOST_PLAIN", 5000)
    monkeypatch.setattr("packlight.transport.plan.MOST_WALKED", 4096)
    (tmp_path / "a").mkdir()
    content = bytes(range(256)) * 80 + b"end"
    (tmp_path / "a" / "model.onnx.data").write_bytes(content)
    done = packlight.pack(tmp_path / "a")
    packlight.unpack(done.path, tmp_path / "b")
    assert contents(tmp_path / "b") == {"model.onnx.data": content}
    assert container.MOST_PIECES > 6
