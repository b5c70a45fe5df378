"""Runs models side by side: how far their predictions differ, how fast, in how much memory.

All figures are read off the files themselves, in their runtime (llama.cpp reads GGUF), each in a
child process of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from packlight.errors import UnusableModel, UnusableSamples, WrongUsage
from packlight.maths.bootstrap import bootstrap_ratio
from packlight.measure.evidence import Pair
from packlight.measure.language import Divergence, DivergenceSums, Piece
from packlight.measure.language_evidence import Continuation, Speed, SpeedEvidence
from packlight.runtime import Limits, cpu_features
from packlight.runtime.llamacpp import LLAMACPP
from packlight.runtime.text import TextRunner, TextRuntime

WINDOW = 256
"""Tokens of a window where nothing else is asked for."""
LEAST_ROUNDS = 6
"""Fewer pairs allow no interval at 95 % for a median."""

_DEFAULT = Limits()
_Rows = NDArray[np.float32]


@dataclass(frozen=True)
class TextTimes:
    """Seconds of one file in every round: of reading the prompt, and of generating after it."""

    path: Path
    prompt: NDArray[np.float64]
    generation: NDArray[np.float64]


def cut_windows(
    tokens: ArrayLike, length: int = WINDOW, *, start: int | None = None, most: int | None = None
) -> NDArray[np.int32]:
    """Windows [n, length] of a text's tokens, one after another; the rest is left out.

    start: the token that every window begins with, for a model that is used to it (it then
    takes the place of one of the text's). most: of the text's tokens, from its beginning.
    Raises UnusableSamples where the text is shorter than one window.
    """
    if length < 2:
        raise WrongUsage(f"A window has two tokens or more, not {length}.")
    found = np.asarray(tokens, np.int32)[:most]
    taken = length - (start is not None)
    count = len(found) // taken
    if count == 0:
        raise UnusableSamples(
            f"The text has {len(found)} tokens, fewer than one window of {length}: give a longer "
            "text."
        )
    windows = found[: count * taken].reshape(count, taken)
    if start is None:
        return windows
    return np.concatenate([np.full((count, 1), start, np.int32), windows], axis=1)


def measure_divergence(
    original: Path,
    compressed: Path,
    windows: NDArray[np.integer],
    *,
    threads: int = 1,
    skip: int = 0,
    seed: int = 0,
    limits: Limits = _DEFAULT,
    runtime: TextRuntime = LLAMACPP,
    on_window: Callable[[], None] | None = None,
) -> Divergence:
    """How far the compressed file's predictions lie from the original's; see measure/language.py.

    windows: tokens [n, length], as cut_windows makes them. skip: first rows of each window that
    don't count. on_window: called after each.
    """
    (found,) = measure_divergences(
        original,
        [compressed],
        windows,
        threads=threads,
        skip=skip,
        seed=seed,
        limits=limits,
        on_window=on_window,
        runtime=runtime,
    )
    return found


def measure_divergences(
    original: Path,
    files: Sequence[Path],
    windows: NDArray[np.integer],
    *,
    threads: int = 1,
    skip: int = 0,
    seed: int = 0,
    limits: Limits = _DEFAULT,
    runtime: TextRuntime = LLAMACPP,
    on_window: Callable[[], None] | None = None,
) -> tuple[Divergence, ...]:
    """The same for any number of files, all loaded at the same time; the original runs once."""
    if windows.ndim != 2 or len(windows) == 0:
        raise UnusableSamples(
            f"Predictions are compared in windows of tokens [n, length], not {list(windows.shape)}."
        )
    count, length = windows.shape
    if not 0 <= skip < length - 1:
        raise WrongUsage(
            f"Of the {length - 1} predictions of a window, {skip} cannot be left out: none would "
            "be left."
        )
    sums = [DivergenceSums() for _ in files]
    with contextlib.ExitStack() as stack:
        models = [
            stack.enter_context(runtime.open(path, threads=threads, context=length, limits=limits))
            for path in (original, *files)
        ]
        reference = models[0]
        at_once = max(1, min(len(models), cpu_features().cores // threads))
        workers = stack.enter_context(ThreadPoolExecutor(at_once))
        for other in models[1:]:
            _check_same_tokens(reference, other)
        for number in range(count):
            window = windows[number]
            begin = 0
            for rows in _in_step(workers, [model.logits(window) for model in models]):
                # The last row of a window predicts what lies in no window.
                end = min(begin + len(rows[0]), length - 1)
                first = max(begin, skip)
                if first < end:
                    targets = window[first + 1 : end + 1]
                    part = slice(first - begin, end - begin)
                    for total, theirs in zip(sums, rows[1:], strict=True):
                        total.add(Piece(number, rows[0][part], theirs[part], targets))
                begin += len(rows[0])
            if on_window is not None:
                on_window()
    return tuple(total.divergence(seed=seed) for total in sums)


def _in_step(workers: Executor, streams: Sequence[Iterator[_Rows]]) -> Iterator[list[_Rows]]:
    """The next rows of all streams, which run at the same time; they end together."""
    while True:
        rows = [found for found in workers.map(_next_or_none, streams) if found is not None]
        if not rows:
            return
        if len(rows) < len(streams) or len({len(each) for each in rows}) > 1:
            raise ValueError("streams of logits that are cut in different places")
        yield rows


def _next_or_none(stream: Iterator[_Rows]) -> _Rows | None:
    return next(stream, None)


def _check_same_tokens(original: TextRunner, compressed: TextRunner) -> None:
    ours, theirs = original.model, compressed.model
    if (ours.vocabulary, ours.tokenizer) != (theirs.vocabulary, theirs.tokenizer):
        raise UnusableModel(
            f"{original.path.name} has {ours.vocabulary} tokens of the tokenizer "
            f"{ours.tokenizer!r} and {compressed.path.name} {theirs.vocabulary} of "
            f"{theirs.tokenizer!r}: only files of the same tokenizer compare."
        )


def time_texts(
    files: Sequence[Path],
    prompt: ArrayLike,
    count: int,
    *,
    threads: int = 1,
    rounds: int = 12,
    limits: Limits = _DEFAULT,
    runtime: TextRuntime = LLAMACPP,
) -> tuple[TextTimes, ...]:
    """Seconds of all files in interleaved rounds, each beginning with another file.

    prompt: tokens [n] that are read at once; count: tokens that follow one by one. A first round
    is not counted. Entry r of all files belongs to one round, so they compare pairwise.
    """
    tokens = np.asarray(prompt, np.int32)
    if not files or rounds < LEAST_ROUNDS or count < 1:
        raise WrongUsage(
            f"Speed is measured on at least one file and token in at least {LEAST_ROUNDS} rounds, "
            f"not on {len(files)} and {count} in {rounds}."
        )
    table = np.empty((len(files), 2, rounds))
    with contextlib.ExitStack() as stack:
        models = [
            stack.enter_context(
                runtime.open(
                    path,
                    threads=threads,
                    context=len(tokens) + count,
                    every_position=False,
                    limits=limits,
                )
            )
            for path in files
        ]
        for model in models:
            model.time(tokens, count)
        for done in range(rounds):
            for turn in range(len(models)):
                which = (turn + done) % len(models)
                seconds = models[which].time(tokens, count)
                table[which, :, done] = seconds.prompt, seconds.generation
    # A clock that did not tick between two readings must not divide by zero.
    table = np.maximum(table, 1e-9)
    return tuple(
        TextTimes(path, table[place, 0], table[place, 1]) for place, path in enumerate(files)
    )


def compare_speed(
    original: NDArray[np.float64], compressed: NDArray[np.float64], tokens: int, *, seed: int = 0
) -> Speed:
    """Tokens a second from the seconds [rounds] that both needed for so many tokens."""
    found = bootstrap_ratio(original, compressed, seed=seed)
    return Speed(
        original=tokens / float(np.median(original)),
        compressed=tokens / float(np.median(compressed)),
        ratio=found.ratio,
        ratio_interval_95=(found.low, found.high),
    )


def measure_speed(
    original: Path,
    compressed: Path,
    prompt: ArrayLike,
    count: int = 32,
    *,
    threads: int = 1,
    rounds: int = 12,
    seed: int = 0,
    limits: Limits = _DEFAULT,
    runtime: TextRuntime = LLAMACPP,
) -> SpeedEvidence:
    """Tokens a second of both files, prompt and generation, in interleaved rounds."""
    tokens = np.asarray(prompt, np.int32)
    first, second = time_texts(
        [original, compressed],
        tokens,
        count,
        threads=threads,
        rounds=rounds,
        limits=limits,
        runtime=runtime,
    )
    return SpeedEvidence(
        runtime=runtime.name(),
        threads=threads,
        prompt_tokens=len(tokens),
        generated_tokens=count,
        prompt=compare_speed(first.prompt, second.prompt, len(tokens), seed=seed),
        generation=compare_speed(first.generation, second.generation, count, seed=seed),
    )


def measure_text_memory(
    original: Path,
    compressed: Path,
    prompt: ArrayLike,
    count: int = 32,
    *,
    threads: int = 1,
    limits: Limits = _DEFAULT,
    runtime: TextRuntime = LLAMACPP,
) -> Pair:
    """Peak resident set in bytes of a fresh process for each file: loads, reads, generates."""
    peaks = [
        peak_memory(path, prompt, count, threads=threads, limits=limits, runtime=runtime)
        for path in (original, compressed)
    ]
    return Pair(original=peaks[0], compressed=peaks[1])


def peak_memory(
    path: Path,
    prompt: ArrayLike,
    count: int,
    *,
    threads: int = 1,
    limits: Limits = _DEFAULT,
    runtime: TextRuntime = LLAMACPP,
) -> int:
    """Peak resident set in bytes of a fresh process that reads a prompt and generates."""
    tokens = np.asarray(prompt, np.int32)
    with runtime.open(
        path,
        threads=threads,
        context=len(tokens) + count,
        every_position=False,
        limits=limits,
    ) as model:
        model.time(tokens, count)
        return model.peak_memory_bytes()


def continue_texts(
    original: Path,
    compressed: Path,
    prompts: Sequence[ArrayLike],
    count: int = 48,
    *,
    threads: int = 1,
    limits: Limits = _DEFAULT,
    runtime: TextRuntime = LLAMACPP,
) -> tuple[Continuation, ...]:
    """What both files write after each prompt, choosing the most probable token each time.

    prompts: tokens [n] each, a start token included where the model wants one.
    """
    given = [np.asarray(prompt, np.int32) for prompt in prompts]
    if not given or not all(len(tokens) for tokens in given):
        raise WrongUsage("There is nothing to continue: a prompt has one token at least.")
    context = max(len(tokens) for tokens in given) + count
    said: list[list[str]] = []
    for path in (original, compressed):
        with runtime.open(
            path, threads=threads, context=context, every_position=False, limits=limits
        ) as model:
            said.append([model.detokenize(model.generate(tokens, count)) for tokens in given])
            if len(said) == 1:
                start = model.model.start if model.model.adds_start else None
                asked = [
                    model.detokenize(tokens[1:] if tokens[0] == start else tokens)
                    for tokens in given
                ]
    return tuple(
        Continuation(prompt, before, after)
        for prompt, before, after in zip(asked, *said, strict=True)
    )
