"""A candidate: one recipe as a file, and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packlight.measure.evidence import MetricEvidence
from packlight.recipe import Recipe


@dataclass(frozen=True)
class Tried:
    """One recipe as a file, and what was measured of it on the search samples.

    metric: None where it could not be run. latency_ratio: to the original, one thread.
    packed_bytes: of the entropy-coded file; None where it was not made.
    """

    label: str
    recipe: Recipe
    path: Path
    files: tuple[Path, ...]
    size_bytes: int
    notes: dict[str, str] = field(default_factory=dict)
    metric: MetricEvidence | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    latency_interval_95: tuple[float, float] | None = None
    packed_bytes: int | None = None
    failure: str = ""

    @property
    def drop(self) -> float:
        """Of the metric; infinite where it could not be run."""
        return self.metric.drop if self.metric is not None else float("inf")

    @property
    def noise_db(self) -> float:
        """Signal-to-noise ratio of the worst output; -infinity where it could not be run."""
        if self.metric is None:
            return float("-inf")
        return self.metric.noise_db if self.metric.noise_db is not None else 0.0
