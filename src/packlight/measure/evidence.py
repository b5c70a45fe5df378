"""Evidence: everything a run measured and decided, as plain frozen values.

`report/` turns it into a table, a page and `report.json`; nothing in here knows
how a figure was come by, and every figure in a report comes from here.
Times are milliseconds, sizes bytes, errors decibels of output signal to noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["met", "best-effort", "not-worth-it"]

EXIT_STATUS: dict[Verdict, int] = {"met": 0, "best-effort": 3, "not-worth-it": 4}
"""What the command line ends with."""


@dataclass(frozen=True)
class Budget:
    """What the user asked for; None where they did not."""

    max_drop: float | None = None
    max_size_bytes: int | None = None
    max_latency_ms: float | None = None
    max_download_bytes: int | None = None


@dataclass(frozen=True)
class MetricEvidence:
    """The quality of both files on the proof samples.

    name: "top-1 accuracy", "top-1 agreement", "explained variance", or the user's own.
    samples: number of proof samples.
    original, compressed: the metric of each file (fidelity of the original is 1).
    drop: original - compressed, absolute; drop_interval_95: its paired interval.
    proven: the whole interval lies within the budget.
    samples_needed: about how many samples a proof would need (None: proven, or hopeless).
    noise_db: worst output's signal-to-noise ratio of the compressed file's outputs.
    agreement: top-1 agreement of both files where the output is a classifier's.
    """

    name: str
    samples: int
    original: float
    compressed: float
    drop: float
    drop_interval_95: tuple[float, float]
    proven: bool
    samples_needed: int | None = None
    noise_db: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class LatencyEvidence:
    """Interleaved runs of both files in one process.

    ratio: median of compressed / original; ratio_interval_95: by bootstrap.
    """

    runtime: str
    threads: int
    original: float
    compressed: float
    ratio: float
    ratio_interval_95: tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """One figure of the original and of the compressed file."""

    original: int
    compressed: int


@dataclass(frozen=True)
class LayerEvidence:
    """What became of one layer.

    choice: "int8", "int8-dynamic", "weights-int8", "weights-int4-blocks", "float16", "float32", ...
    error_db: signal-to-noise ratio at the model's worst output when this layer alone is
        compressed (None: not measured).
    reason: why it was left alone, or why this choice; empty when it is plainly the best.
    """

    name: str
    op: str
    choice: str
    error_db: float | None = None
    reason: str = ""
    bytes_original: int = 0
    bytes_compressed: int = 0
    ms_original: float | None = None
    ms_compressed: float | None = None


@dataclass(frozen=True)
class Skipped:
    """Something that was not compressed, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Trial:
    """One whole model that was tried.

    drop: of the metric on the search samples (None: not measured).
    latency_ratio: compressed / original, one thread (None: not measured). latency_ms: likewise.
    packed_bytes: of the entropy-coded file (None: not made).
    average_bits: a weight, by count of weights (None: not known).
    front: no other trial is better in one of size, time and drop and as good in the others.
    """

    label: str
    size_bytes: int
    drop: float | None = None
    noise_db: float | None = None
    latency_ratio: float | None = None
    chosen: bool = False
    note: str = ""
    latency_ms: float | None = None
    packed_bytes: int | None = None
    average_bits: float | None = None
    front: bool = False


@dataclass(frozen=True)
class ChannelEvidence:
    """Channels that go together.

    kept: of `size`, 0 where a branch went with them. reason: why none can go, '' where they can.
    """

    name: str
    size: int
    kept: int
    reason: str = ""


@dataclass(frozen=True)
class RankEvidence:
    """A layer taken apart into two. kind: matrix, channel or spatial. rank: what passes between."""

    name: str
    kind: str
    rank: int


@dataclass(frozen=True)
class Thinning:
    """What went before anything was rounded: channels, residual branches, ranks of layers.

    macs_original, macs_left: multiply-accumulates for one sample. heal_steps: of training, with
    the loss on held-out calibration samples before and after (None: not trained).
    """

    macs_original: int
    macs_left: int
    channels: tuple[ChannelEvidence, ...] = ()
    heal_steps: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    notes: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    ranks: tuple[RankEvidence, ...] = ()

    @property
    def share(self) -> float:
        """The share of the multiply-accumulates that went."""
        return 1 - self.macs_left / max(self.macs_original, 1)


@dataclass(frozen=True)
class Tuning:
    """Training of the chosen file towards the original, with its rounding in the loop.

    steps: planned, with the loss on held-out calibration samples before and after (None: not
    trained). kept: whether the trained file is the one that is handed over.
    """

    steps: int
    loss_before: float | None = None
    loss_after: float | None = None
    kept: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeviceFile:
    """The compressed model in the format of the target's own runtime, beside model.onnx.

    title: of the format. files: names in the output folder, () where none could be written.
    runtime: what the figures were measured in, '' where they were not measured here.
    metric: of this file against the original in onnxruntime. latency_ms: against the original
    written in the same format (None: that could not be). energy_mj: per inference, millijoules
    of the whole processor (None: the machine does not tell).
    verdict, reason: of this file under the budget, '' where it could not be judged; where no
    file is there, or nothing was measured, the reason says why.
    """

    title: str
    files: tuple[str, ...] = ()
    size_bytes: int = 0
    runtime: str = ""
    metric: MetricEvidence | None = None
    latency_ms: LatencyEvidence | None = None
    peak_memory_bytes: int | None = None
    energy_mj: float | None = None
    verdict: Verdict | Literal[""] = ""
    reason: str = ""


@dataclass(frozen=True)
class Evidence:
    """All that one run of `compress` has to show. `report.json` is this value.

    packed_bytes: of the compressed model's files and recipe, entropy coded (None: not made).
    preset: what was wished for most. thinning: channels that were removed (None: none).
    tuning: how the file was trained once it was chosen (None: it was not asked for).
    device_file: the file of the target's own runtime (None: it reads model.onnx).
    """

    verdict: Verdict
    reason: str
    model: str
    target: str
    budget: Budget
    size_bytes: Pair
    metric: MetricEvidence | None
    latency_ms: LatencyEvidence | None
    latency_all_threads_ms: LatencyEvidence | None
    peak_memory_bytes: Pair | None
    layers: tuple[LayerEvidence, ...]
    not_compressed: tuple[Skipped, ...]
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    samples: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    packed_bytes: int | None = None
    preset: str = "balanced"
    thinning: Thinning | None = None
    tuning: Tuning | None = None
    device_file: DeviceFile | None = None
