"""Windows that pass through blocks in other processes: whoever takes them, all is the same."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_bench import llama_tensors, write_llama

torch = pytest.importorskip("torch", reason="blocks are computed with PyTorch")

from packlight.errors import UnusableModel, UnusableOutput  # noqa: E402
from packlight.llm.blocks import Tensor  # noqa: E402
from packlight.llm.blocks_states import States  # noqa: E402
from packlight.llm.blocks_wiring import Rotary, Wiring, plain_frequencies  # noqa: E402
from packlight.llm.calibrate import calibrate_block  # noqa: E402
from packlight.llm.checkpoint import open_checkpoint  # noqa: E402
from packlight.llm.compress import compress_checkpoint  # noqa: E402
from packlight.llm.compress_alone import spread_over_threads  # noqa: E402
from packlight.llm.rounding import Settings  # noqa: E402
from packlight.llm.rounding_matrices import Matrix, round_together  # noqa: E402
from packlight.llm.shared_folder import SharedFolder  # noqa: E402
from packlight.llm.text import Windows  # noqa: E402
from packlight.plan.workers import run_in_turn  # noqa: E402

SIZE = (7, 10, 16)  # windows, tokens, width
BATCH = 20  # two windows, and one at the end
WIRING = Wiring(
    width=16,
    heads=2,
    key_heads=2,
    head_size=8,
    rotary=(Rotary("halves", 8, plain_frequencies(1e4, 8)),),
    window=(None,),
    attention_scale=8**-0.5,
    experts_used=2,
)
ATTENTION = {f"attn_{one}.weight": (16, 16) for one in ("q", "k", "v", "output")}
DENSE = ATTENTION | {f"ffn_{one}.weight": (24, 16) for one in ("gate", "up")}
DENSE |= {"ffn_down.weight": (16, 24)}
EXPERTS = ATTENTION | {f"ffn_{one}_exps.weight": (3, 24, 16) for one in ("gate", "up")}
EXPERTS |= {"ffn_down_exps.weight": (3, 16, 24), "ffn_gate_inp.weight": (3, 16)}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def coarse(weights: Any, moments: Any) -> Any:
    """Rounds by what was summed: another sum gives another weight."""
    share = 1 + 1e-3 * moments.mean(axis=(-1, -2), keepdims=True)
    return {name: (weight * share).astype(np.float32) for name, weight in weights.items()}


def calibrate(
    folder: Path, spread: Any, shapes: dict[str, Any], aim: Any = "own", broken: bool = False
) -> list[Tensor]:
    """A block's weights afterwards, and the states of both streams."""
    weights = {
        name: 0.4 * draw(*shape, seed=number) for number, (name, shape) in enumerate(shapes.items())
    }
    weights |= {f"{one}_norm.weight": torch.ones(16) for one in ("attn", "ffn")}
    each = [States(*SIZE, scratch=folder, limit_bytes=0) for _ in range(2)]
    with each[0] as states, each[1] as original:
        for number, one in enumerate(each):
            one.write(slice(0, SIZE[0]), draw(*SIZE, seed=100 + number))
        if broken:
            states.write(slice(4, 5), torch.full((1, *SIZE[1:]), float("nan")))
        found = calibrate_block(
            weights,
            WIRING,
            0,
            states,
            original,
            coarse,
            wanted=[name for name, one in weights.items() if one.ndim > 1 and "inp" not in name],
            aim=aim,
            batch_tokens=BATCH,
            spread=spread,
        )
        every = slice(0, SIZE[0])
        return [*found.values(), states.read(every), original.read(every)]


@pytest.mark.parametrize(
    ("shapes", "aim", "workers"),
    [(DENSE, "own", 2), (DENSE, "stream", 3), (EXPERTS, "outputs", 3)],
)
def test_workers_decide_no_bit_of_a_block(
    tmp_path: Path, shapes: Any, aim: str, workers: int
) -> None:
    here = calibrate(tmp_path, None, shapes, aim)
    there = calibrate(tmp_path, partial(run_in_turn, workers=workers), shapes, aim)
    assert all(torch.equal(one, two) for one, two in zip(here, there, strict=True))
    assert not [*tmp_path.iterdir()]


KINDS = ("Q4_0", "Q8_0", "F16")


def choose(costs: Any, other: int) -> dict[str, str]:
    """A type of each tensor that depends on what all of them cost."""
    losses = [f"{option.loss:.9e}" for one in costs for option in one.options]
    key = zlib.crc32(" ".join(losses).encode())
    return {one.name: KINDS[(key >> place) % 2] for place, one in enumerate(costs)}


@pytest.mark.parametrize(("tied", "workers"), [(True, 3), (False, 2)])
def test_workers_decide_no_byte_of_a_file(tmp_path: Path, tied: bool, workers: int) -> None:
    """Windows, types that are weighed, and matrices that are rounded."""
    tensors = llama_tensors()
    if tied:
        del tensors["lm_head.weight"]
    model = write_llama(tmp_path / "model", tensors, tie_word_embeddings=tied)
    checkpoint = open_checkpoint(model)
    tokens = np.random.default_rng(0).integers(0, 300, (133, 32)).astype(np.int32)
    windows = Windows("drawn", tokens[:129], tokens[129:131], tokens[131:], tokens.size)
    content = []
    gone: list[str] = []

    def elsewhere(function: Any, tasks: Any, *, held: int = 8) -> Iterator[Any]:
        gone.append(function.__name__)
        return run_in_turn(function, tasks, workers=workers, held=held)

    for spread in (spread_over_threads, elsewhere):
        done = compress_checkpoint(
            checkpoint,
            tmp_path / "out.gguf",
            choose,
            windows=windows,
            candidates=KINDS,
            settings=Settings(curvature_tokens=512),
            spread=spread,
        )
        content.append((tmp_path / "out.gguf").read_bytes())
    assert set(done.types.values()) == {"Q4_0", "Q8_0"}
    assert set(gone) == {"weigh_errand", "gather_batch", "round_errand", "pass_batch"}
    assert content[0] == content[1]
    assert {one.name for one in tmp_path.iterdir()} == {"model", "out.gguf"}


def test_a_task_that_is_done_twice_gives_the_same(tmp_path: Path) -> None:
    """As one is whose worker died after it was done, or half-way."""

    def twice(function: Callable[[Any], Any], tasks: Any, *, held: int = 8) -> Iterator[Any]:
        for task in tasks:
            function(task)
            yield function(task)

    here, there = (calibrate(tmp_path, spread, DENSE, "stream") for spread in (None, twice))
    assert all(torch.equal(one, two) for one, two in zip(here, there, strict=True))


def test_few_batches_of_sums_lie_on_the_disk_at_a_time(tmp_path: Path) -> None:
    found = []

    def watch(function: Callable[[Any], Any], tasks: Any, *, held: int = 8) -> Iterator[Any]:
        for result in run_in_turn(function, tasks, workers=1, held=held):
            found.append(len([*tmp_path.glob("passes-*/*.sums")]))
            yield result

    calibrate(tmp_path, watch, DENSE)
    assert max(found) == 2 < SIZE[0] * SIZE[1] // BATCH


def test_what_is_not_finite_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(UnusableModel, match=r"block 0: .*attn_q\.weight.*NaN"):
        calibrate(tmp_path, partial(run_in_turn, workers=2), DENSE, broken=True)
    assert not [*tmp_path.iterdir()]


def test_a_worker_that_does_not_see_the_disk_is_one_sentence(tmp_path: Path) -> None:
    def elsewhere(function: Callable[[Any], Any], tasks: Any, *, held: int = 8) -> Iterator[Any]:
        for path in tmp_path.glob("states-*"):
            path.unlink()
        return map(function, tasks)

    with pytest.raises(UnusableOutput, match=r"No such file .* a disk that all of them see"):
        calibrate(tmp_path, elsewhere, DENSE)


class Run:
    """Takes rounded tensors; rows are rounded to whole numbers under what reaches them."""

    def __init__(self, slopes: Path | None = None) -> None:
        self.slopes, self.taken = slopes, dict[str, Any]()

    def matrix(self, name: str) -> Matrix:
        return Matrix(name, Whole(), self.slopes, 2)

    def take(self, name: str, rounded: Any, *, compensated: bool, note: str) -> None:
        self.taken[name] = [one.data.tolist() for one in rounded], compensated, note


@dataclass(frozen=True)
class Whole:
    kind: str = "whole"

    def encode(self, weight: Any, moments: Any, *, part: bool = False) -> Any:
        if not np.isfinite(weight).all():
            raise ValueError("it holds NaN")
        return (np.round(weight) + 100 + (moments is not None)).astype(np.uint8)

    def decode(self, data: Any) -> Any:
        return data.astype(np.float32) - 100


@pytest.mark.parametrize("experts", [0, 3])
def test_matrices_that_read_the_same_are_rounded_wherever(tmp_path: Path, experts: int) -> None:
    lead = (experts,) if experts else ()
    weights = {name: 3 * draw(*lead, 6, 4, seed=i).numpy() for i, name in enumerate("qkv")}
    moments = np.zeros((*lead, 4, 4)) + np.eye(4)
    if experts:
        moments[1] = 0
    slopes = tmp_path / "slopes.npy"
    np.save(slopes, np.eye(6, dtype=np.float32) + 0.5)
    found = []
    for spread in (None, partial(run_in_turn, workers=2)):
        run = Run(slopes)
        near = round_together(run, weights, moments, spread=spread, scratch=tmp_path)  # type: ignore[arg-type]
        found.append((run.taken, {name: one.tolist() for name, one in near.items()}))
    assert found[0] == found[1]
    taken, near = found[0]
    note = "1 experts saw no token of the text" if experts else ""
    assert [one[1:] for one in taken.values()] == [(True, note)] * 3
    assert np.shape(near["q"]) == weights["q"].shape
    if experts:
        np.testing.assert_array_equal(near["k"][1], np.round(weights["k"][1]))
    assert [one.name for one in tmp_path.iterdir()] == ["slopes.npy"]


def test_what_cannot_be_rounded_elsewhere_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    weights = {name: np.full((2, 4), np.nan, np.float32) for name in "qk"}
    spread = partial(run_in_turn, workers=2)
    with pytest.raises(UnusableModel, match="q cannot be rounded to whole: it holds NaN"):
        round_together(Run(), weights, None, spread=spread, scratch=tmp_path)  # type: ignore[arg-type]
    assert not [*tmp_path.iterdir()]


ON_RAY = """
import sys
from functools import partial
from pathlib import Path
import numpy as np
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.compress import compress_checkpoint, uniform_types
from packlight.llm.compress_alone import spread_over_threads
from packlight.llm.rounding import Settings
from packlight.llm.text import Windows
from packlight.plan.workers import connect_ray, run_in_turn

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    checkpoint = open_checkpoint(folder / "model")
    tokens = np.random.default_rng(0).integers(0, 300, (133, 32)).astype(np.int32)
    windows = Windows("drawn", tokens[:129], tokens[129:131], tokens[131:], tokens.size)
    types = uniform_types(checkpoint, "Q4_0")
    content = []
    with connect_ray("ray"):
        for spread in (spread_over_threads, partial(run_in_turn, workers="ray")):
            compress_checkpoint(
                checkpoint, folder / "out.gguf", types, windows=windows,
                settings=Settings(curvature_tokens=512), spread=spread,
            )
            content.append((folder / "out.gguf").read_bytes())
    assert content[0] == content[1]
    print("all well")
"""


def test_a_text_on_ray_as_in_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    write_llama(tmp_path / "model", llama_tensors())
    script = tmp_path / "main.py"
    script.write_text(ON_RAY)
    run = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=600
    )
    assert run.stdout.strip().endswith("all well"), run.stderr[-3000:]


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnusableOutput, match=r"none: .*cannot be kept there \(No such file"):
        SharedFolder("passes-", tmp_path / "none")
