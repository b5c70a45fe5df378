from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packlight.errors import UnusableProof
from packlight.proof.manifest import Manifest, read_manifest, read_seal, write_manifest

Seal = Callable[[Any], bytes]
WHERE = Path("packed/manifest.json")
PROMISE = {
    "name": "y", "dtype": "float32", "classes": True, "scale": 2.0, "spread": 0.0,
    "tolerance": 0.1, "original_spread": 0.0, "original_tolerance": 0.1,
}  # fmt: skip
GOLDEN = {"samples": 2, "inputs": ["x"], "outputs": [PROMISE]}


def build(**changes: Any) -> dict[str, Any]:
    digest = "0" * 64
    names = ("golden.npz", "model.onnx")
    value = {
        "schema": 1,
        "kind": "graph",
        "model": "model.onnx",
        "original": {"name": "net.onnx", "size_bytes": 9, "sha256": digest},
        "files": [{"name": name, "size_bytes": 1, "sha256": digest} for name in names],
        "claims": {"latency_ms": {"original": 2, "compressed": 1.5}},
        "made_on": {"processor": "p"},
        "golden": GOLDEN,
        "note": "",
        "packlight": "0.2.0",
    }
    return {**value, **changes}


def test_what_is_written_is_read_and_written_again(seal: Seal) -> None:
    content = seal(build())
    manifest = read_manifest(content, WHERE)
    assert read_seal(content) is not None
    assert [entry.name for entry in manifest.files] == ["golden.npz", "model.onnx"]
    assert manifest.claim("latency_ms", "compressed") == 1.5
    assert manifest.claim("latency_ms", "none") is None
    assert manifest.claim("size_bytes", "original") is None
    again = write_manifest(manifest).encode()
    assert read_manifest(again, WHERE) == manifest
    assert read_seal(again) == json.loads(again)["sha256"]


def test_every_flipped_bit_of_a_manifest_breaks_its_seal(whole: Path) -> None:
    content = bytearray((whole / "manifest.json").read_bytes())
    assert read_seal(bytes(content)) is not None
    for place in range(len(content)):
        content[place] ^= 1 << place % 8
        assert read_seal(bytes(content)) is None, place
        content[place] ^= 1 << place % 8
    for other in (content[:-1], content + b"\n", content[1:], b"", b"{}"):
        assert read_seal(bytes(other)) is None


@pytest.mark.parametrize(
    "name",
    ["../net.onnx", "/etc/passwd", "a/b", "a\\b", "..", "C:x", "", "nul", "a\x1b", "manifest.json",
     "MODEL.onnx", "model.onnx "],
)  # fmt: skip
def test_names_that_leave_the_folder_or_collide_are_refused(seal: Seal, name: str) -> None:
    value = build()
    value["files"].append({"name": name, "size_bytes": 1, "sha256": "0" * 64})
    with pytest.raises(UnusableProof, match="names a file that it may not"):
        read_manifest(seal(value), WHERE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "schema 2, but this packlight reads schema 1"),
        ({"schema": None}, "schema None"),
        ({"kind": "movie"}, "kind 'movie'"),
        ({"model": "other.onnx"}, "does not list 'other.onnx'"),
        ({"model": 3}, "a text is expected"),
        ({"files": {}}, "a list of at most"),
        ({"files": [1]}, "an object is expected"),
        ({"files": [{"name": "model.onnx"}]}, "sha256"),
        ({"files": [{"name": "a", "size_bytes": 1, "sha256": "x"}]}, "no SHA-256"),
        ({"files": [{"name": "a", "size_bytes": -1, "sha256": "0" * 64}]}, "a count"),
        ({"files": [{"name": "a", "size_bytes": True, "sha256": "0" * 64}]}, "a count"),
        ({"claims": []}, "an object is expected"),
        ({"made_on": {"a": 1}}, "a text is expected"),
        ({"golden": {**GOLDEN, "samples": 10**9}}, "a count"),
        ({"golden": {**GOLDEN, "samples": 0}}, "without samples"),
        ({"golden": {**GOLDEN, "outputs": [{**PROMISE, "tolerance": -1}]}}, "from 0"),
        ({"golden": {**GOLDEN, "outputs": [{**PROMISE, "classes": 1}]}}, "neither true nor"),
        ({"note": None}, "a text is expected"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_sentence(
    seal: Seal, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnusableProof, match=said):
        read_manifest(seal(build(**changes)), WHERE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "no JSON object"),
        (b"nonsense", "not the JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"schema": NaN}', "no number"),
        (b'{"schema": ' + b"[" * 100_000, "nested too deep|not the JSON"),
        (b"[" * (1 << 23) + b"[", "more than"),
        (b"\xff", "not the JSON"),
    ],
)
def test_hostile_json_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(UnusableProof, match=said):
        read_manifest(content, WHERE)


def test_numbers_without_end_are_no_claim(seal: Seal) -> None:
    text = seal(build()).replace(b"1.5", b"1e999")
    manifest = read_manifest(text, WHERE)
    assert isinstance(manifest, Manifest)
    assert manifest.claim("latency_ms", "compressed") is None
    assert manifest.claim("latency_ms", "original") == 2.0
    with pytest.raises(UnusableProof, match="from 0"):
        read_manifest(text.replace(b"0.1", b"1e999", 1), WHERE)
