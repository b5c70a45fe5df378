"""Few bits a weight: which types are weighed for them, and what is said where some cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from folder_bench import write_llama, write_tall_llama

import packlight
from packlight.language import gguf
from packlight.language.ask import Ask
from packlight.language.gguf import GgufTarget
from packlight.language.result import LanguageResult
from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.formats import FORMATS, has_codebooks
from packlight.plan.types import CANDIDATES, CODEBOOKS

needs_codebooks = pytest.mark.skipif(
    not has_codebooks(), reason="codebooks are read from the gguf package"
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_tall_llama(tmp_path_factory.mktemp("wide"), 1, 256, 256))


@needs_codebooks
def test_codebooks_are_weighed_where_few_bits_are_asked_for(
    wide: Checkpoint, tmp_path: Path
) -> None:
    target = GgufTarget()
    weights = sum(info.weights for info in wide.tensors.values())
    for few in (Ask("llama.cpp", bits=2.5), Ask("llama.cpp", max_size_bytes=weights // 3)):
        found = target.candidates(wide, few)
        assert {*found} == {*CODEBOOKS, *CANDIDATES}
        bits = [FORMATS[kind].bits_per_weight for kind in found]
        assert bits == sorted(bits)
    for more in (Ask("llama.cpp", bits=4.5), Ask("llama.cpp", max_drop=0.02)):
        assert target.candidates(wide, more) == CANDIDATES
    narrow = open_checkpoint(write_llama(tmp_path / "narrow"))
    assert not {*CODEBOOKS} & {*target.candidates(narrow, Ask("llama.cpp", bits=2.5))}


@needs_codebooks
def test_they_are_given_and_the_size_is_met(wide: Checkpoint) -> None:
    found = packlight.compress(wide.path, bits=2.4, target="llama.cpp")
    assert isinstance(found, LanguageResult)
    assert {one.type for one in found.evidence.tensors} & {*CODEBOOKS}
    assert found.evidence.bits_per_weight == pytest.approx(2.4, rel=0.02)


def test_without_the_package_that_is_said(
    wide: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "has_codebooks", lambda: False)
    found = packlight.compress(wide.path, bits=3, target="llama.cpp")
    assert isinstance(found, LanguageResult)
    assert not {one.type for one in found.evidence.tensors} & {*CODEBOOKS}
    assert any("need the package gguf" in note for note in found.evidence.notes)
    more = packlight.compress(wide.path, bits=4.5, target="llama.cpp")
    assert isinstance(more, LanguageResult)
    assert not any("package gguf" in note for note in more.evidence.notes)
