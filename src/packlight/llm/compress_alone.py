"""Tensors without text, a piece of rows at a time, wherever there is a processor.

No piece knows of another: each is read, rounded and held against what it was by itself, in one of
some threads or in a process of its own (`Spread`), and the file takes them in their order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.checkpoint.parts import Part, read_part
from packlight.llm.costs import FormatTable, TensorCosts, costs_without_text
from packlight.llm.formats.quantizing import THREADS
from packlight.llm.rounding import Rounding

PIECE = 1 << 20
"""Weights that are rounded at a time."""

STEP = 1 << 17
"""Weights of it that are read and held against the original while they are in the cache."""

WEIGHED_ROWS = 512
"""Rows of a tensor on which types are tried."""

Task = TypeVar("Task")
Result = TypeVar("Result")


class Spread(Protocol):
    """Gives what a function makes of each task, in their order.

    The function stands at the top of a module and tasks are frozen values, so that both can go
    to another process. held: results that may wait to be taken, for each worker.
    """

    def __call__(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], /, *, held: int = 8
    ) -> Iterator[Result]:
        """See the class."""


def spread_over_threads(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, held: int = 2
) -> Iterator[Result]:
    """A `Spread` over this machine's cores: NumPy lets go of the interpreter while it computes."""
    threads = min(os.cpu_count() or 1, THREADS)
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in tasks:
                running.append(pool.submit(function, task))
                if len(running) > held * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for left in running:
                left.cancel()


def round_spread(
    run: Rounding,
    spread: Spread,
    function: Callable[[Task], Result],
    tasks: Mapping[str, Sequence[Task]],
    write: Callable[[str, Iterator[Result]], None],
) -> None:
    """Round tensors in pieces, write each once all its pieces are there, and keep what is kept.

    tasks: the pieces of each tensor that is to be rounded and is not finished. write: is given a
    tensor's name and what `function` made of its pieces, which it must take.
    """
    tensors = run.checkpoint.tensors
    run.progress.stage("rounding", len(tensors))
    rounded = spread(function, [*chain.from_iterable(tasks.values())])
    for name in tensors:
        if name in tasks:
            write(name, islice(rounded, len(tasks[name])))
        elif not run.wants(name):
            run.keep(name)
        run.progress.step(name)


@dataclass(frozen=True)
class Piece:
    """Rows begin..end of a tensor, and the type that they get."""

    name: str
    part: Part
    kind: str
    formats: FormatTable
    begin: int
    end: int


@dataclass(frozen=True)
class RoundedPiece:
    """Bytes [rows, row_bytes]; error, power: squares of what was lost, and of the weights."""

    data: NDArray[np.uint8]
    error: float
    power: float


def cut_rows(rows: int, inputs: int) -> Iterator[tuple[int, int]]:
    """Where pieces of `PIECE` weights of a matrix begin and end."""
    step = max(PIECE // inputs, 1)
    return ((at, min(at + step, rows)) for at in range(0, rows, step))


def pieces_of(
    checkpoint: Checkpoint, name: str, kind: str, formats: FormatTable
) -> tuple[Piece, ...]:
    """A tensor in pieces, from its first rows to its last."""
    part = checkpoint.parts[name]
    return tuple(
        Piece(name, part, kind, formats, *rows) for rows in cut_rows(part.rows, part.shape[-1])
    )


def round_piece(piece: Piece) -> RoundedPiece:
    """Round rows of a tensor to the nearest that their type can say. Raises UnusableModel."""
    weight = read_part(piece.part, piece.begin, piece.end)
    inputs, formats = weight.shape[1], piece.formats
    data = np.empty((len(weight), formats.row_bytes(piece.kind, inputs)), np.uint8)
    step = max(STEP // inputs, 1)
    error = power = 0.0
    for at in range(0, len(weight), step):
        some = weight[at : at + step]
        try:
            data[at : at + step] = formats.encode(piece.kind, some)
        except ValueError as broken:
            message = f"{piece.name} cannot be rounded to {piece.kind}: {broken}"
            raise UnusableModel(message) from broken
        gap = some - formats.decode(piece.kind, data[at : at + step])
        error += float((gap * gap).sum())
        power += float((some * some).sum())
    return RoundedPiece(data, error, power)


@dataclass(frozen=True)
class Trial:
    """A tensor whose types are to be tried."""

    name: str
    part: Part
    candidates: tuple[str, ...]
    formats: FormatTable


def weigh_alone(task: Trial) -> TensorCosts:
    """What each candidate costs a tensor, tried on its first rows."""
    part = task.part
    rows = read_part(part, 0, min(part.rows, WEIGHED_ROWS))
    return costs_without_text(task.name, part.shape, rows, task.candidates, task.formats)
