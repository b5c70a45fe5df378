from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import VOCABULARY, draw_weights, reference_logits, write_gguf

from packlight.errors import UnusableModel, UnusableSamples, WrongUsage
from packlight.measure.language import Piece, compare_logits
from packlight.measure.language_proof import prove_language
from packlight.measure.language_run import (
    compare_speed,
    continue_texts,
    cut_windows,
    measure_divergence,
    measure_divergences,
    measure_speed,
    measure_text_memory,
    time_texts,
)
from packlight.runtime.llamacpp import LlamaCpp, TextSeconds, has_llamacpp
from packlight.runtime.text import TextRuntime

needs_llamacpp = pytest.mark.skipif(
    not has_llamacpp() or importlib.util.find_spec("gguf") is None,
    reason="llama-cpp-python or gguf is not installed here (packlight[llamacpp], packlight[llm])",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Llama, and the same with its weights rounded."""
    folder = tmp_path_factory.mktemp("gguf")
    weights = draw_weights(0)
    write_gguf(folder / "original.gguf", weights)
    rounded = {
        name: np.round(array * 20).astype(np.float32) / 20 for name, array in weights.items()
    }
    write_gguf(folder / "rounded.gguf", rounded)
    return folder / "original.gguf", folder / "rounded.gguf"


def draw_windows(count: int, length: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, VOCABULARY, (count, length)).astype(np.int32)


def test_windows_are_cut_one_after_another() -> None:
    assert cut_windows(range(11), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert cut_windows(range(11), 3, most=7).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert cut_windows(range(5), 3, start=9).tolist() == [[9, 0, 1], [9, 2, 3]]


def test_too_little_text_is_said_so() -> None:
    with pytest.raises(UnusableSamples, match="has 4 tokens, fewer than one window of 5"):
        cut_windows(range(4), 5)
    with pytest.raises(WrongUsage, match="two tokens or more"):
        cut_windows(range(4), 1)


@needs_llamacpp
@pytest.mark.parametrize("skip", [0, 5])
def test_the_divergence_of_files_is_that_of_their_weights(
    files: tuple[Path, Path], skip: int
) -> None:
    windows = draw_windows(4, 20)
    original = draw_weights(0)
    rounded = {
        name: np.round(array * 20).astype(np.float32) / 20 for name, array in original.items()
    }
    expected = compare_logits(
        Piece(
            number,
            reference_logits(original, window)[skip:-1],
            reference_logits(rounded, window)[skip:-1],
            window[skip + 1 :],
        )
        for number, window in enumerate(windows)
    )
    seen: list[int] = []
    found = measure_divergence(*files, windows, skip=skip, on_window=lambda: seen.append(1))
    assert (found.tokens, found.windows) == (4 * (19 - skip), 4) == (expected.tokens, 4)
    assert found.mean_kl == pytest.approx(expected.mean_kl, rel=0.05)
    assert found.perplexity_original == pytest.approx(expected.perplexity_original, rel=0.01)
    assert found.perplexity_ratio == pytest.approx(expected.perplexity_ratio, rel=0.01)
    assert len(seen) == 4


@needs_llamacpp
def test_pieces_of_a_window_are_counted_once(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context holds more than what leaves at once: 512 positions of this vocabulary."""
    found = measure_divergence(*files, draw_windows(2, 513), skip=511)
    assert found.tokens == 2
    assert measure_divergence(*files, draw_windows(2, 513)).tokens == 2 * 512
    with pytest.raises(WrongUsage, match="none would be left"):
        measure_divergence(*files, draw_windows(2, 513), skip=512)


@needs_llamacpp
def test_many_files_are_compared_as_if_alone(files: tuple[Path, Path]) -> None:
    windows = draw_windows(3, 20)
    both = measure_divergences(files[0], [files[0], files[1]], windows)
    assert both[0].mean_kl == 0
    assert both[0].top_agreement == 1
    assert both[1] == measure_divergence(*files, windows)


@needs_llamacpp
def test_files_of_other_tokens_do_not_compare(files: tuple[Path, Path], tmp_path: Path) -> None:
    import gguf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tokenizer_pre", lambda self, pre: None)
        write_gguf(tmp_path / "other.gguf", draw_weights(0))
    with pytest.raises(UnusableModel, match=r"other\.gguf 258 of 'gpt2'.*same tokenizer"):
        measure_divergence(files[0], tmp_path / "other.gguf", draw_windows(2, 9))


def test_speed_is_a_paired_ratio() -> None:
    drift = np.linspace(1, 4, 12)
    found = compare_speed(2.0 * drift, 0.5 * drift, 32)
    assert found.ratio == 4
    assert found.ratio_interval_95 == (4, 4)
    assert found.original == pytest.approx(32 / (2.0 * 2.5))
    assert found.compressed == pytest.approx(32 / (0.5 * 2.5))


def test_files_take_turns(tmp_path: Path) -> None:
    log: list[str] = []

    class Fake:
        def __init__(self, path: Path, **options: object) -> None:
            self.name = path.name
            assert options["context"] == 7
            assert options["every_position"] is False

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            log.append("|")

        def time(self, tokens: np.ndarray, count: int) -> TextSeconds:
            log.append(self.name)
            return TextSeconds(float(len(log)), 0.0)

    engine: Any = Fake
    fake = TextRuntime(engine, lambda: "fake", lambda: None)
    found = time_texts([tmp_path / "a", tmp_path / "b"], [1, 2, 3], 4, rounds=6, runtime=fake)
    assert "".join(log) == "ab" + "abba" * 3 + "||"
    assert found[0].prompt.tolist() == [3, 6, 7, 10, 11, 14]
    assert (found[0].generation > 0).all()
    with pytest.raises(WrongUsage, match="at least 6 rounds"):
        time_texts([tmp_path / "a"], [1], 4, rounds=5)


@needs_llamacpp
def test_speed_and_memory_of_real_processes(files: tuple[Path, Path]) -> None:
    found = measure_speed(*files, draw_windows(1, 16)[0], 3, rounds=6)
    assert (found.prompt_tokens, found.generated_tokens, found.threads) == (16, 3, 1)
    assert found.runtime.startswith("llama.cpp (llama-cpp-python ")
    for speed in (found.prompt, found.generation):
        low, high = speed.ratio_interval_95
        assert 0 < low <= speed.ratio <= high
    memory = measure_text_memory(*files, draw_windows(1, 16)[0], 3)
    assert min(memory.original, memory.compressed) > 10 << 20


@needs_llamacpp
def test_continuations_stand_side_by_side(files: tuple[Path, Path]) -> None:
    prompts = draw_windows(2, 5)
    found = continue_texts(*files, list(prompts), 6)
    with LlamaCpp(files[1]) as model:
        assert [one.prompt for one in found] == [model.detokenize(tokens) for tokens in prompts]
        assert found[0].compressed == model.detokenize(model.generate(prompts[0], 6))
    assert found == continue_texts(*files, list(prompts), 6)
    same = continue_texts(files[0], files[0], list(prompts), 6)
    assert all(one.original == one.compressed for one in same)
    with pytest.raises(WrongUsage, match="nothing to continue"):
        continue_texts(*files, [[]], 6)


@needs_llamacpp
def test_one_call_measures_all(files: tuple[Path, Path]) -> None:
    text = "the thing that they thought of " * 20
    steps: list[str] = []
    found = prove_language(*files, text, window=32, rounds=6, on_step=steps.append)
    with LlamaCpp(files[0]) as model:
        tokens = model.tokenize(text)
    assert found.divergence == measure_divergence(*files, cut_windows(tokens, 32))
    assert found.speed is not None
    assert found.peak_memory_bytes is not None
    assert len(found.continuations) == 3
    assert all(one.prompt in text for one in found.continuations)
    assert found.notes == ()
    assert steps == [
        "comparing predictions",
        "measuring speed",
        "measuring memory",
        "continuing texts",
    ]


@needs_llamacpp
def test_a_short_text_is_one_short_window(files: tuple[Path, Path]) -> None:
    found = prove_language(*files, "the thing", rounds=6)
    assert found.divergence is not None
    assert (found.divergence.windows, found.divergence.tokens) == (1, 6)
    assert "one window of 7 tokens only" in found.notes[0]
    with pytest.raises(UnusableSamples, match="has 1 tokens: at least two"):
        prove_language(*files, "t")


@needs_llamacpp
def test_windows_are_compared_as_they_are(files: tuple[Path, Path]) -> None:
    windows = draw_windows(5, 12)
    found = prove_language(*files, windows, most=40, texts=0, rounds=6)
    assert found.divergence == measure_divergence(*files, windows[:3])
    assert found.continuations == ()
    with pytest.raises(UnusableSamples, match=r"not \[0, 12\]"):
        prove_language(*files, windows[:0], rounds=6)
