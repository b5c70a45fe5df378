"""Distillation: a graph is trained to give what the original gives, on unlabelled samples.

The original is the teacher, run by the runtime itself. Its outputs t (for classes the scores
before softmax: Ba and Caruana 2014, "Do deep nets really need to be deep?"), and the tensors
inside that both graphs have in the same shape (Romero et al. 2015, "FitNets"), are what the
student's s are held to:

    loss = sum over outputs |t - s|^2 / var(t) + hint * mean over hints |t - s|^2 / var(t)

with the variances of `packlight.maths.variation`, from sample to sample.

A teacher is so sure of what it was trained on that its softmax says little: on resnet20 without
half of its multiplications 200 steps by squared error gave 88.4 % right, by divergence 87.4 %.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.nn import functional

from packlight.errors import WrongUsage
from packlight.graph.anatomy import count_macs
from packlight.graph.fingerprint import fingerprint
from packlight.graph.model import save_model
from packlight.graph.torch.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from packlight.graph.torch.hints import find_hints, with_more_outputs
from packlight.graph.torch.vary import vary
from packlight.maths.variation import variations_of
from packlight.progress import SILENT, Progress
from packlight.runtime import Process, Session, cpu_features
from packlight.samples import Samples, batches_of, hold_out
from packlight.tensors import TensorSpec

BATCH = 64
FEW = 8
"""Samples of a step where the model takes them one at a time: they are run one after the other,
their gradients added up. More of them would leave too few steps in the time there is."""

STEP_WORK = 4e9
"""Multiply-accumulates of a step forwards, about: for the same reason a model that multiplies a lot
takes fewer samples a step, but FEW. Of a small Llama 64 passages a step left 8 steps in 2 minutes.
"""

HINT = 16.0
"""Weight of the hints against the outputs; it falls to 0 along with the rate. 1, 4 and 16 gave
88.5, 88.9 and 89.2 % after 200 steps where the note above has 88.4."""

CHECKS = 12
PATIENCE = 4
STAYS = 0.75
"""So often the state is looked at; after `PATIENCE` looks without a gain training ends, but not
before the share STAYS of it: the rate is still too high there for what is gained to show."""

RUIN = 10.0
LOST = 0.5
"""A state whose loss is RUIN times that of the beginning, and more than LOST of the variance,
will not come back."""

RATE = 2e-3
FAR = 0.1
"""The largest rate, of a student that is FAR off or more: steps at random cost loss in proportion
to the rate, so that one who is nearer takes smaller ones, RATE * sqrt(loss / FAR). So do steps of
fewer samples, by sqrt(batch / BATCH) (Malladi et al. 2022, "On the SDEs and scaling rules for
adaptive gradient algorithms"): a speech detector at 3.6e-4 that took 8 at a time gained nothing in
600 steps without this, and came to 2.8e-4 in 200 with it."""

WARM_UP = 0.04
"""Share of the steps in which the rate rises from 0."""

MEASURED = 3
TIMED = 0.03
"""So many steps, and for so large a share of the time, are timed to tell how many it holds, after
as many to warm up: three short ones alone may fall into a moment that is like no other."""

Feeds: TypeAlias = dict[str, NDArray[Any]]


class Trainee(Protocol):
    """A module that computes a graph: `run` gives its outputs, and tensors inside, by name."""

    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, Any], *, wanted: Iterable[str] = ()) -> dict[str, Any]:
        """The outputs by name, and the tensors named in `wanted`."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """What is trained."""
        ...

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move to a device."""
        ...


@dataclass(frozen=True)
class Distilled:
    """How training went; the trainee is in its best state, `better` than it was or as it was.

    steps: those done, of `planned`. before, after: the loss on held-out samples.
    history: (step, that loss) at each look. notes: what the report should say.
    """

    steps: int
    planned: int
    before: float
    after: float
    history: tuple[tuple[int, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def better(self) -> bool:
        """Whether training brought the outputs nearer to the original's."""
        return self.after < self.before


@dataclass
class _Student:
    """The module in training, the teacher beside it, and what they are compared by."""

    module: Trainee
    teacher: Session
    hints: tuple[str, ...]
    device: torch.device
    variances: dict[str, float] = field(default_factory=dict)

    def learn_variances(self, runs: Sequence[Feeds]) -> None:
        """What the errors of each tensor are held against: its variance in these runs."""
        names = [*self.module.outputs, *self.hints]
        self.variances = variations_of(self.teacher.run(feeds, names) for feeds in runs)

    def loss(self, feeds: Feeds, hint: float) -> torch.Tensor:
        """How far the student is from the teacher on one batch."""
        wanted = [*self.module.outputs, *(self.hints if hint else ())]
        taught = self.teacher.run(feeds, wanted)
        given = {name: _tensor(array, self.device) for name, array in feeds.items()}
        found = self.module.run(given, wanted=self.hints if hint else ())
        total = torch.zeros((), device=self.device)
        for name in wanted:
            if taught[name].dtype.kind != "f":
                continue
            goal = _tensor(taught[name], self.device).float()
            mine = found[name].float()
            weight = hint / max(len(self.hints), 1) if name in self.hints else 1.0
            total = total + weight * functional.mse_loss(mine, goal) / self.variances[name]
        return total


@dataclass(frozen=True)
class Lessons:
    """What is trained with, and for how long.

    indices: samples to train with; those of `hold_out` tell the best state and ruin, and should
    have had no part in the student. steps: of `batch` samples (by itself FEW to BATCH, by what
    one costs); or minutes: as many steps as fit, by timing a few (then a run on another machine
    may take others: note `Distilled.planned`). rate: the largest of AdamW's, which rises and then
    falls along a cosine; by itself RATE, and less for a student that is near and for steps of few
    samples. checkpoint: a file from which an interrupted run of the same graphs, samples and
    settings goes on; it is left there.
    """

    samples: Samples
    indices: Sequence[int]
    inputs: Sequence[TensorSpec]
    process: Process
    steps: int | None = None
    minutes: float | None = None
    rate: float | None = None
    batch: int | None = None
    seed: int = 0
    checkpoint: Path | None = None
    progress: Progress = SILENT


def distill(
    original: ir.Model,
    student: ir.Model,
    trainee: Trainee,
    lessons: Lessons,
    *,
    word: str,
    hints: bool = True,
    rate: float = RATE,
) -> Distilled:
    """Train `trainee`, which computes `student`, towards `original`, and give its best state.

    original, student: graphs with the same inputs and outputs. word: what the training is
    called in progress and notes. hints: whether tensors inside mean the same in both; they do
    not where a rewrite moved factors from layer to layer. rate: the largest, where the lessons
    do not say it, of a student that is FAR off. A state that is worse than the
    student was, or no number, is never given back.
    Raises WrongUsage without steps or minutes, and where samples are too few to train with.
    """
    if (lessons.steps is None) == (lessons.minutes is None):
        raise WrongUsage("Say how long to heal: either a number of steps, or minutes.")
    apart, rest = hold_out(lessons.indices, seed=lessons.seed)
    if not apart:
        raise WrongUsage(f"{len(rest)} samples are too few to heal with: give at least 10.")
    trained = np.asarray(rest)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainee.to(device, memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder, ExitStack() as stack:
        inside = find_hints(original, student) if hints else ()
        path = Path(folder) / "teacher.onnx"
        save_model(with_more_outputs(original, inside), path, durable=False)
        teacher = lessons.process.load(path, threads=cpu_features().cores, spinning=False)
        stack.callback(teacher.close)
        held = _read(lessons.samples, apart, lessons.inputs, lessons.batch or BATCH)
        alone = len(held) == len(apart) > 1
        batch = lessons.batch or (FEW if alone else _affordable(student, held[0], lessons.inputs))
        pupil = _Student(trainee, teacher, inside, device)
        pupil.learn_variances(held[:BATCH])
        before = _held_out_loss(pupil, held)
        if not math.isfinite(before):
            raise WrongUsage("The student's loss is no number before training: nothing to heal.")
        nearer = rate * min(1.0, math.sqrt(before / FAR)) * min(1.0, math.sqrt(batch / BATCH))
        rate = nearer if lessons.rate is None else lessons.rate
        state = _Training(pupil, rate, batch, trained, lessons)
        key = "" if lessons.checkpoint is None else _key(original, student, lessons, word)
        kept = None if lessons.checkpoint is None else read_checkpoint(lessons.checkpoint, key)
        if kept is not None:
            steps = kept.planned
        elif lessons.steps is not None:
            steps = lessons.steps
        else:
            assert lessons.minutes is not None
            steps = _steps_within(state, 60 * lessons.minutes)
        return _train(state, steps, before, held, lessons, key, kept, word)


class _Training:
    """Parameters, optimizer and the stream of batches: all that a step needs."""

    def __init__(
        self,
        pupil: _Student,
        rate: float,
        batch: int,
        indices: NDArray[np.intp],
        lessons: Lessons,
    ) -> None:
        self.pupil, self.rate, self.indices, self.batch = pupil, rate, indices, batch
        self.lessons, self.seed = lessons, lessons.seed
        self.parameters = [parameter for _, parameter in pupil.module.named_parameters()]
        self.start()

    def start(self) -> None:
        """A fresh optimizer."""
        decayed = [p for p in self.parameters if p.ndim > 1]
        others = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate)

    def step(self, number: int, share: float) -> float:
        """One step: `number` says which samples, `share` how much of training is done."""
        rate = self.rate * _schedule(share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        hint = HINT * _schedule(max(share, WARM_UP))
        self.optimizer.zero_grad(set_to_none=True)
        runs = self.feeds(number)
        total = 0.0
        for feeds in runs:
            loss = self.pupil.loss(feeds, hint) / len(runs)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return total

    def feeds(self, number: int) -> list[Feeds]:
        """The samples of a step: each epoch in another order, each sample varied anew.

        Several runs where the model takes fewer samples at a time than a step has.
        """
        size = min(self.batch, len(self.indices))
        each = len(self.indices) // size
        epoch, place = divmod(number, each)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.indices)
        chosen = np.sort(order[place * size : (place + 1) * size])
        random = np.random.default_rng((self.seed, 1, number))
        runs = _read(self.lessons.samples, chosen, self.lessons.inputs, size)
        return [vary(feeds, random) for feeds in runs]


def _train(
    state: _Training,
    steps: int,
    before: float,
    held: Sequence[Feeds],
    lessons: Lessons,
    key: str,
    kept: Checkpoint | None,
    word: str,
) -> Distilled:
    module, checkpoint, progress = state.pupil.module, lessons.checkpoint, lessons.progress
    best, best_loss, waited = _copy(module), before, 0
    history: list[tuple[int, float]] = [(0, before)]
    begun = 0
    notes: list[str] = []
    if kept is not None:
        begun, best_loss, history = kept.step, kept.best_loss, list(kept.history)
        waited = len(history) - 1 - [loss for _, loss in history].index(best_loss)
        best = {name: torch.from_numpy(array) for name, array in kept.best.items()}
        kept.restore(module, state.optimizer)
        notes.append(f"{word} went on from step {begun} of an earlier run")
    look = max(1, steps // CHECKS)
    progress.stage(word, steps)
    progress.step(advance=begun)
    done, recent = begun, before
    for number in range(begun, steps):
        recent = state.step(number, number / steps)
        done = number + 1
        broken = not math.isfinite(recent)
        progress.step(f"loss {recent:.4f}")
        if not broken and done % look and done < steps:
            continue
        loss = math.inf if broken else _held_out_loss(state.pupil, held)
        history.append((done, loss))
        if loss < best_loss:
            best, best_loss, waited = _copy(module), loss, 0
        else:
            waited += 1
        if not loss < max(RUIN * before, LOST):
            notes.append(f"{word} ran out of bounds at step {done} and went back to its best state")
            break
        if waited >= PATIENCE and done > STAYS * steps:
            notes.append(f"{word} ended at step {done} of {steps}: it no longer gained")
            break
        if checkpoint is not None:
            write_checkpoint(
                checkpoint,
                key,
                Checkpoint.of(
                    done, steps, best_loss, tuple(history), best, module, state.optimizer
                ),
            )
    _restore(module, best)
    if best_loss >= before:
        notes.append(f"{word} did not bring the outputs nearer to the original's: left as it was")
    return Distilled(done, steps, before, best_loss, tuple(history), tuple(notes))


def _read(
    samples: Samples, indices: Sequence[int] | NDArray[np.intp], inputs: Any, batch: int
) -> list[Feeds]:
    runs = batches_of(samples, [int(i) for i in indices], inputs, batch=batch)
    return [dict(run.feeds) for run in runs]


def _tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """On the device; pictures with channels last, as convolutions take them fastest."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
    if tensor.ndim == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def _held_out_loss(pupil: _Student, held: Sequence[Feeds]) -> float:
    with torch.no_grad():
        losses = [float(pupil.loss(feeds, 0.0)) for feeds in held]
    # The last run may be a shorter one.
    sizes = [sum(array.size for array in feeds.values()) for feeds in held]
    return float(np.average(losses, weights=sizes))


def _affordable(student: ir.Model, feeds: Feeds, inputs: Sequence[TensorSpec]) -> int:
    """Samples of a step of a model that takes many at a time."""
    one = {spec.name: (1, *feeds[spec.name].shape[1:]) for spec in inputs}
    macs = sum(count or 0 for count in count_macs(student, one).values())
    return int(np.clip(STEP_WORK / max(macs, 1), FEW, BATCH))


def _steps_within(state: _Training, seconds: float) -> int:
    """How many steps fit a time, to two digits; the module is left as it was."""
    start = _copy(state.pupil.module)
    for number in range(MEASURED):
        state.step(number, 0.0)
    begun, number, taken = time.monotonic(), 0, 0.0
    while number < MEASURED or taken < TIMED * seconds:
        state.step(number, 0.0)
        number += 1
        taken = time.monotonic() - begun
    each = taken / number
    _restore(state.pupil.module, start)
    state.start()
    count = max(1, int((0.98 - TIMED) * seconds / each))
    digits: int = 10 ** max(len(str(count)) - 2, 0)
    return count // digits * digits


def _schedule(share: float) -> float:
    """The rate as a share of the largest: up in a line, then down along half a cosine."""
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def _copy(module: Trainee) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def _restore(module: Trainee, state: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(state[name])


def _key(original: ir.Model, student: ir.Model, lessons: Lessons, word: str) -> str:
    """What a checkpoint belongs to: graphs, samples and settings."""
    settings = (word, lessons.steps, lessons.minutes, lessons.rate, lessons.batch, lessons.seed)
    graphs = (original, student)
    return fingerprint(graphs, lessons.samples, lessons.indices, lessons.inputs, settings)
