"""What a compression will take, before it begins: bytes of the file, memory, disk and time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import prod

from packlight.llm.architectures import EMBEDDING, LINEAR, OUTPUT
from packlight.llm.checkpoint import Checkpoint, TensorInfo
from packlight.llm.costs import bytes_of
from packlight.llm.formats import codebooks, onebit
from packlight.llm.gguf.writing import alignment_of, head_bytes, pad
from packlight.llm.text import LENGTH

ROUNDED_ROLES = (LINEAR, EMBEDDING, OUTPUT)
"""What is stored in fewer bits; norms, biases and routers stay as they are, in 32."""

WIDEST = 8192
"""Outputs up to which gradients' second moments are a whole matrix; beyond, its diagonal."""

BASE_BYTES = 500 << 20
"""Python with PyTorch and what a batch of windows needs in a block."""

HEAD_LOGITS = 7 << 20
"""Logits of all words that are there together, of one token at least: less than 32 MiB, beyond
which the C library asks the system for every array anew."""

HEAD_ARRAYS = 8
"""Arrays of them, in 32 bits, that are there at a time, and what is lost between them."""

HEAD_WORDS = 1024
"""Rows of the head or the embedding that are rounded to all types together."""

GRADIENT_TOKENS = 1024
"""Tokens that gradients are taken of together; one window at least."""

ALONE_BYTES = 400 << 20
"""Python with NumPy, and the pieces of a tensor that are rounded at a time."""


@dataclass(frozen=True)
class Pace:
    """Seconds that rounding a weight takes on one core of a server of 2024, which threads and
    workers make fewer: the forecast is rather too long. text: under full second moments; alone:
    without text.
    """

    text: float
    alone: float


SUPER_BLOCKS = Pace(3e-6, 1e-7)
"""Of GGUF's types whose levels any input may have."""

_PACES = {
    **dict.fromkeys(codebooks.LAYOUTS, Pace(16e-6, 1e-6)),
    **dict.fromkeys(onebit.LAYOUTS, Pace(40e-6, 5e-6)),
}
"""Of the others."""

FLOPS = 4e10
"""Multiplications and additions a second in the passes over the windows, measured there."""

PASSES = 5.0
"""Forward passes of calibration that a block costs, second moments included."""

BATCH_TOKENS = 4096
"""Tokens that pass through a block together. Second moments are summed up of each batch, and added
in the order of the windows, whoever does it: what comes out depends on this alone."""

HELD = 2
"""Batches whose second moments may wait on the disk for each worker: of wide layers they are
large."""


@dataclass(frozen=True)
class CompressionForecast:
    """size_bytes: of the file. memory_bytes: at the peak. scratch_bytes: on the disk meanwhile,
    beside the file. seconds: about. rounded, kept: numbers of tensors.
    """

    size_bytes: int
    memory_bytes: int
    scratch_bytes: int
    seconds: float
    rounded: int
    kept: int


@dataclass(frozen=True)
class WorkersForecast:
    """What workers take besides. memory_bytes, scratch_bytes: each of them, and on the disk that
    all share. shared_bytes: there, whatever their number.
    """

    memory_bytes: int
    scratch_bytes: int = 0
    shared_bytes: int = 0


def rounded_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The tensors that get a type: matrices of linear layers, embedding and output head."""
    return tuple(
        name
        for name, info in checkpoint.tensors.items()
        if info.role in ROUNDED_ROLES and len(info.shape) >= 2
    )


def other_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the file that no choice of types changes: its head, and tensors kept in 32 bits."""
    rounded = set(rounded_names(checkpoint))
    shapes = {name: tuple(info.shape) for name, info in checkpoint.tensors.items()}
    pairs = checkpoint.gguf_metadata()
    kept = (shape for name, shape in shapes.items() if name not in rounded)
    aligned = alignment_of(pairs)
    return head_bytes(pairs, shapes) + sum(pad(4 * prod(shape), aligned) for shape in kept)


def forecast_compression(
    checkpoint: Checkpoint,
    types: Mapping[str, str],
    *,
    tokens: int = 0,
    states_bytes: int = 2 << 30,
    followed: bool = False,
    gradients: bool = True,
    weighed: int = 0,
) -> CompressionForecast:
    """Say what rounding to these types will take.

    tokens: of the calibration windows, 0 without text. states_bytes: of hidden states that stay in
    memory. followed: whether the original is computed beside (`Settings.aim`). gradients: whether
    they are taken beforehand (`Settings.rows_make_up`, or types to be chosen). weighed: how many
    types are weighed for each tensor.
    """
    tensors = checkpoint.tensors
    size = other_bytes(checkpoint)
    aligned = alignment_of(checkpoint.gguf_metadata())
    size += sum(pad(bytes_of(types[name], tensors[name].shape), aligned) for name in types)
    found = forecast_work(
        checkpoint,
        tuple(types),
        size,
        tokens=tokens,
        states_bytes=states_bytes,
        followed=followed,
        gradients=gradients,
        weighed=weighed,
    )
    seconds = found.seconds
    for name, kind in types.items():
        pace = _PACES.get(kind, SUPER_BLOCKS)
        if tokens:
            seconds += tensors[name].weights * (pace.text - SUPER_BLOCKS.text)
        else:
            seconds += tensors[name].weights * (pace.alone - SUPER_BLOCKS.alone)
    return replace(found, seconds=seconds)


def forecast_work(
    checkpoint: Checkpoint,
    types: Collection[str],
    size: int,
    *,
    tokens: int = 0,
    states_bytes: int = 2 << 30,
    followed: bool = False,
    gradients: bool = True,
    weighed: int = 0,
    pace: Pace = SUPER_BLOCKS,
) -> CompressionForecast:
    """Say what rounding these tensors will take, whatever becomes of them; see above.

    size: bytes of what is written. pace: of rounding them.
    """
    tensors, config = checkpoint.tensors, checkpoint.config
    weights = sum(tensors[name].weights for name in types)
    names = rounded_names(checkpoint)
    inner = [name for name in names if checkpoint.block_of(name) is not None]
    layer = max((tensors[name].weights for name in inner), default=0)
    outer = max((tensors[name].weights for name in {*names} - {*inner}), default=0)
    if not tokens:
        memory = ALONE_BYTES + 2 * max(layer, outer)
        seconds = weights * pace.alone
        return _forecast(checkpoint, types, size, memory, 0, seconds)
    slopes: dict[int | None, int] = {}
    for name in names:
        info, block = tensors[name], checkpoint.block_of(name)
        outputs = info.shape[-2] if info.shape[-2] <= WIDEST else 0
        slopes[block] = slopes.get(block, 0) + 16 * outputs**2 + _moments_bytes(info)
    moments = max((_moments_bytes(tensors[name]) for name in names), default=0)
    inside, outside = _weights_of_blocks(checkpoint)
    streams = 2 if followed else 1
    states = tokens * config.width * 4 * (streams + 1)
    resident = min(states, states_bytes)
    # A block's weights before and after, a layer's working copies, and sums of moments with their
    # copies; windows that wait between its groups.
    memory = 8 * inside + 16 * layer + moments * (3 + 2 * (streams - 1))
    memory += min(streams * tokens * _bytes_of_walk(checkpoint), states_bytes // 2)
    # The embedding or the head before and after, and as bytes; or beside blocks that lead to it.
    memory = max(memory, 10 * outer, 4 * (outer + inside) + 3 * moments)
    base = BASE_BYTES
    if gradients or weighed:
        base += _bytes_of_head(checkpoint, weighed)
        sums = max((size for block, size in slopes.items() if block is not None), default=0)
        # A layer's gradients beside those of its block, and the layer in several shapes.
        sums += max((_bytes_beside(tensors[name]) for name in inner), default=0)
        memory = max(memory, 12 * inside + sums, 4 * outside)
    memory += base + resident
    work = 2.0 * tokens * (weights - outside) * PASSES * streams
    seconds = work / FLOPS + weights * pace.text * (1 + 0.2 * weighed)
    return _forecast(checkpoint, types, size, memory, states - resident, seconds)


def forecast_workers(
    checkpoint: Checkpoint, *, tokens: int = 0, states_bytes: int = 2 << 30
) -> WorkersForecast:
    """Say what workers take besides; see above. States lie on the disk then, also those that would
    stay in memory, and so do the weights of a block, before and after.
    """
    if not tokens:
        return WorkersForecast(ALONE_BYTES)
    # The embedding and the head stay in the process that gives out the rest.
    names = rounded_names(checkpoint)
    infos = [checkpoint.tensors[one] for one in names if checkpoint.block_of(one) is not None]
    moments = max((_moments_bytes(info) for info in infos), default=0)
    widest = max((info.shape[-1] for info in infos), default=0)
    inside, _ = _weights_of_blocks(checkpoint)
    passing = 4 * inside + BATCH_TOKENS * _bytes_of_walk(checkpoint)
    # Of one expert its products, in 32 and in 64 bits, and the sum that is made of them.
    passing += moments + 20 * widest**2
    rounding = max(map(_bytes_of_rounding, infos), default=0)
    states = min(2 * 4 * tokens * checkpoint.config.width, states_bytes)
    weighing: dict[int | None, int] = {}
    for info in infos:
        block = checkpoint.block_of(info.name)
        weighing[block] = weighing.get(block, 0) + _bytes_of_weighing(info)
    shared = max(states + 3 * 4 * inside, *weighing.values(), 0)
    return WorkersForecast(BASE_BYTES + max(passing, rounding), HELD * moments, shared)


def _bytes_of_head(checkpoint: Checkpoint, weighed: int) -> int:
    """What logits take, and rows in all types. Whoever asked for memory once, keeps it."""
    config = checkpoint.config
    window = max(GRADIENT_TOKENS, min(config.context or LENGTH, LENGTH))
    logits = min(config.vocabulary * window, max(HEAD_LOGITS, config.vocabulary))
    words = min(config.vocabulary, HEAD_WORDS)
    return 4 * (HEAD_ARRAYS * logits + (weighed + 4) * words * config.width)


def _bytes_beside(info: TensorInfo) -> int:
    """What a matrix takes while it is weighed, beside the sums of its block."""
    outputs, inputs = info.shape[-2:]
    slopes = 12 * outputs**2 if outputs <= WIDEST else 0
    return int(slopes + 28 * outputs * inputs + 4 * inputs**2)


def _bytes_of_weighing(info: TensorInfo) -> int:
    """What lies on the disk of a layer that is weighed elsewhere."""
    outputs = info.shape[-2]
    slopes = 8 * outputs**2 if outputs <= WIDEST else 8 * outputs
    return 4 * info.weights + _moments_bytes(info) + slopes


def _bytes_of_rounding(info: TensorInfo) -> int:
    """What one matrix takes while it is weighed or rounded: itself in several shapes, second
    moments of its inputs with their factor, and those of its outputs' gradients.
    """
    outputs, inputs = info.shape[-2:]
    slopes = 32 * outputs**2 if outputs <= WIDEST else 0
    return int(40 * outputs * inputs + 24 * inputs**2 + slopes)


def _bytes_of_walk(checkpoint: Checkpoint) -> int:
    """Bytes a token, as `packlight.llm.calibrate_passes.bytes_of_walk` counts them."""
    tensors = checkpoint.tensors
    widest = max((tensors[name].shape[-1] for name in rounded_names(checkpoint)), default=0)
    return 4 * (3 * checkpoint.config.width + 2 * widest)


def _moments_bytes(info: TensorInfo) -> int:
    """Second moments [in, in] of what reaches a tensor, of each expert by itself."""
    return int(8 * prod(info.shape[:-2]) * info.shape[-1] ** 2)


def _weights_of_blocks(checkpoint: Checkpoint) -> tuple[int, int]:
    """Weights that are rounded in the largest block, and outside of blocks."""
    counts: dict[int | None, int] = {None: 0}
    for name in rounded_names(checkpoint):
        block = checkpoint.block_of(name)
        counts[block] = counts.get(block, 0) + checkpoint.tensors[name].weights
    outside = counts.pop(None)
    return max(counts.values(), default=0), outside


def _forecast(
    checkpoint: Checkpoint,
    types: Collection[str],
    size: int,
    memory: int,
    scratch: int,
    seconds: float,
) -> CompressionForecast:
    kept = len(checkpoint.tensors) - len(types)
    return CompressionForecast(size, memory, scratch, seconds, len(types), kept)
