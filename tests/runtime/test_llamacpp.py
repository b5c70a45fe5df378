from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_gguf import VOCABULARY, WIDTH, draw_weights, reference_logits, write_gguf

from packlight.errors import (
    MissingExtra,
    RuntimeCrashed,
    RuntimeOutOfMemory,
    RuntimeRefused,
    RuntimeTimedOut,
    WrongUsage,
)
from packlight.runtime import Limits
from packlight.runtime.llamacpp import LlamaCpp, has_llamacpp

CONTEXT = 600
needs_llamacpp = pytest.mark.skipif(
    not has_llamacpp() or importlib.util.find_spec("gguf") is None,
    reason="llama-cpp-python or gguf is not installed here (packlight[llamacpp], packlight[llm])",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one block with random weights and a byte-level tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, draw_weights(0))
    return path


@pytest.fixture(scope="module")
def model(tiny: Path) -> Iterator[LlamaCpp]:
    """One child for the tests that leave it sound."""
    with LlamaCpp(tiny, context=CONTEXT) as shared:
        yield shared


def draw_tokens(seed: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count)


def all_logits(model: LlamaCpp, window: Any) -> NDArray[np.float32]:
    return np.concatenate(list(model.logits(window)))


@needs_llamacpp
def test_it_tells_what_the_file_is(model: LlamaCpp) -> None:
    found = model.model
    assert (found.architecture, found.name, found.vocabulary) == ("llama", "tiny", VOCABULARY)
    assert found.parameters == sum(array.size for array in draw_weights(0).values())
    assert found.tokenizer == "gpt2/gpt-2"
    assert not found.adds_start


@needs_llamacpp
def test_logits_are_the_models_at_every_position(model: LlamaCpp) -> None:
    """Against the forward pass in NumPy; llama.cpp keeps keys and values in 16 bits."""
    tokens = draw_tokens(0, 40)
    expected = reference_logits(draw_weights(0), tokens)
    found = all_logits(model, tokens)
    assert found.shape == (40, VOCABULARY)
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, atol=0.01)


@needs_llamacpp
def test_a_window_knows_nothing_of_the_one_before(model: LlamaCpp) -> None:
    first, second = draw_tokens(1, 30), draw_tokens(2, 30)
    alone = all_logits(model, second)
    all_logits(model, first)
    np.testing.assert_array_equal(all_logits(model, second), alone)
    model.generate(first, 5)
    np.testing.assert_array_equal(all_logits(model, second), alone)


@needs_llamacpp
def test_a_long_window_comes_in_pieces_that_continue_each_other(model: LlamaCpp) -> None:
    tokens = draw_tokens(3, CONTEXT)
    pieces = list(model.logits(tokens))
    assert [len(piece) for piece in pieces] == [512, CONTEXT - 512]
    expected = reference_logits(draw_weights(0), tokens)
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=0.01)


@needs_llamacpp
@pytest.mark.parametrize("threads", [1, 2])
def test_another_process_gives_the_same_bits(tiny: Path, threads: int) -> None:
    tokens = draw_tokens(4, 50)
    found = []
    for _ in range(2):
        with LlamaCpp(tiny, threads=threads, context=64) as one:
            found.append(all_logits(one, tokens))
    np.testing.assert_array_equal(*found)


@needs_llamacpp
@pytest.mark.parametrize("text", ["", "the thing", "Größe, 数 and 🙂\n\t\x00<|eos|>", "a" * 5000])
def test_text_goes_to_tokens_and_back(model: LlamaCpp, text: str) -> None:
    tokens = model.tokenize(text)
    assert model.detokenize(tokens) == text
    assert not set(tokens.tolist()) & {0, 1}, "special tokens in a text are plain text"


@needs_llamacpp
def test_what_is_generated_is_the_most_probable_each_time(model: LlamaCpp) -> None:
    tokens = draw_tokens(5, 12)
    found = model.generate(tokens, 8)
    weights = draw_weights(0)
    for place in range(len(found)):
        logits = reference_logits(weights, np.concatenate([tokens, found[:place]]))[-1]
        assert logits[found[place]] >= logits.max() - 0.02
    assert len(model.generate(tokens, 0)) == 0


@needs_llamacpp
def test_time_and_memory_are_told(tiny: Path) -> None:
    with LlamaCpp(tiny, context=64, every_position=False) as one:
        seconds = one.time(draw_tokens(6, 32), 4)
        assert seconds.prompt > 0
        assert seconds.generation > 0
        assert 10 << 20 < one.peak_memory_bytes() < 1 << 30


@needs_llamacpp
def test_it_prints_nothing(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with LlamaCpp(tiny, context=64) as one:
        all_logits(one, [2, 3, 4])
    assert capfd.readouterr() == ("", "")


@needs_llamacpp
@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([VOCABULARY], "lie between 0 and 257, but were given from 258"),
        ([-1, 3], "given from -1 to 3"),
        ([], "at least 1 whole number"),
        ([0.5], "float64"),
        ([[1, 2]], "shape \\[1, 2\\]"),
        (list(range(2)) * CONTEXT, "does not fit the context of 600"),
    ],
)
def test_tokens_that_make_no_sense_are_refused(
    model: LlamaCpp, tokens: list[Any], words: str
) -> None:
    with pytest.raises(WrongUsage, match=words):
        all_logits(model, tokens)


@needs_llamacpp
def test_a_prompt_with_its_continuation_must_fit(model: LlamaCpp) -> None:
    with pytest.raises(WrongUsage, match="A prompt of 3 tokens with 598 more"):
        model.generate([1, 2, 3], 598)
    with pytest.raises(WrongUsage, match="with -1 more"):
        model.time([1, 2, 3], -1)


@needs_llamacpp
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b"", "could not load the file: .+"),
        (lambda b: b[:600], "string length 21 exceeds remaining file size"),
        (lambda b: b[: len(b) // 2], "tensor 'output.weight' data is not within the file bounds"),
        (lambda b: b"this is no model" * 100, "invalid magic characters: 'this', expected 'GGUF'"),
        (lambda b: b.replace(b"llama", b"lzzma"), "unknown model architecture: 'lzzma'"),
        (lambda b: b.replace(b"attn_q", b"attn_z"), "tensor 'blk.0.attn_q.weight' not found"),
    ],
)
def test_a_broken_file_is_refused_with_a_sentence(
    tiny: Path, tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(damage(tiny.read_bytes()))
    with pytest.raises(RuntimeRefused, match=words) as caught:
        LlamaCpp(broken)
    said = str(caught.value)
    assert said.startswith("The runtime refused loading broken.gguf in llama.cpp: ")
    assert str(tmp_path) not in said
    assert "llama_model_load" not in said


@needs_llamacpp
def test_a_file_that_llamacpp_dies_of_is_a_typed_error(tiny: Path, tmp_path: Path) -> None:
    """Two tokens of one name: an assertion that ends its process."""
    broken = tmp_path / "twice.gguf"
    broken.write_bytes(tiny.read_bytes().replace(b"<|eos|>", b"<|bos|>"))
    with pytest.raises(RuntimeCrashed, match=r"SIGABRT.*words: GGML_ASSERT"):
        LlamaCpp(broken)


@needs_llamacpp
def test_an_absent_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeRefused, match="There is no file"):
        LlamaCpp(tmp_path / "absent.gguf")


@needs_llamacpp
def test_too_little_memory_is_a_typed_error(tiny: Path) -> None:
    limits = Limits(memory_bytes=200 << 20)
    with pytest.raises(RuntimeOutOfMemory, match="limit of 200 MiB"):
        LlamaCpp(tiny, context=1 << 20, limits=limits)


@needs_llamacpp
def test_logits_that_are_not_finite_are_no_result(tmp_path: Path) -> None:
    weights = draw_weights(0)
    weights["output_norm.weight"] = np.full(WIDTH, np.nan, np.float32)
    path = tmp_path / "nan.gguf"
    write_gguf(path, weights)
    with LlamaCpp(path) as one, pytest.raises(RuntimeRefused, match="not finite at token 0"):
        all_logits(one, [2, 3])


@needs_llamacpp
def test_a_crash_is_a_typed_error_and_ends_the_child(tiny: Path) -> None:
    with LlamaCpp(tiny) as one:
        os.kill(one.pid, signal.SIGKILL)
        with pytest.raises(RuntimeCrashed, match=r"running with tiny\.gguf \(SIGKILL"):
            all_logits(one, [2, 3])
        with pytest.raises(RuntimeCrashed, match="is gone"):
            one.tokenize("a")


@needs_llamacpp
def test_too_long_is_a_typed_error(tiny: Path) -> None:
    with LlamaCpp(tiny, context=600, limits=Limits(seconds=0.5)) as one:
        os.kill(one.pid, signal.SIGSTOP)
        with pytest.raises(RuntimeTimedOut, match=r"longer than 0\.5 s"):
            one.tokenize("a")


@needs_llamacpp
def test_a_mapped_file_does_not_count_as_memory(tiny: Path) -> None:
    limits = Limits(memory_bytes=1 << 30)
    with LlamaCpp(tiny, limits=limits) as one:
        said = Path(f"/proc/{one.pid}/limits").read_text(encoding="ascii").splitlines()
        (space,) = (int(line.split()[3]) for line in said if "address space" in line)
        (data,) = (int(line.split()[3]) for line in said if "data size" in line)
    assert data == 1 << 30
    assert space == (1 << 30) + (8 << 30) + tiny.stat().st_size


@needs_llamacpp
def test_nothing_is_left_of_a_child(tiny: Path) -> None:
    with LlamaCpp(tiny) as one:
        pid = one.pid
    assert not Path(f"/proc/{pid}").exists()


@needs_llamacpp
@pytest.mark.parametrize("options", [{"threads": 0}, {"context": 1}, {"context": 1 << 30}])
def test_options_that_make_no_sense_are_refused(tiny: Path, options: dict[str, int]) -> None:
    with pytest.raises(WrongUsage, match="at least one thread and a context"):
        LlamaCpp(tiny, **options)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install packlight\[llamacpp\]"):
        LlamaCpp(tmp_path / "any.gguf")
