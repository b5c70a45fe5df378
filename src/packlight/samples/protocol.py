"""What the rest of the house knows of samples: a length, labels, and a way to read some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

Array = NDArray[Any]


@runtime_checkable
class Samples(Protocol):
    """A collection of samples that is read piece by piece.

    source: one sentence for the report: what was read and how it was prepared.
    notes: what was assumed or filled in, one sentence each.
    labels: [n], or None where the samples carry none.
    generated: True where nobody gave samples and these were made up.
    """

    @property
    def source(self) -> str:
        """One sentence: what was read and how it was prepared."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed or filled in, one sentence each."""
        ...

    @property
    def labels(self) -> Array | None:
        """One label a sample, [n], or None."""
        ...

    @property
    def generated(self) -> bool:
        """True where the samples were made up."""
        ...

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def read(self, indices: Sequence[int]) -> Mapping[str, Array]:
        """Just these samples, stacked: {input: [len(indices), ...]}.

        An array with as many axes as the model's input has one row a sample; with one
        axis more, each `array[i]` is a whole feed of that input.
        Raises UnusableSamples where a sample is broken, or holds NaN or infinity.
        """
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """Samples that can tell duplicates apart more cheaply than by reading them all."""

    def fingerprints(self, indices: Sequence[int]) -> Sequence[bytes]:
        """One digest a sample; equal digests mean equal samples."""
        ...


def class_names_of(samples: Samples) -> tuple[str, ...]:
    """The names of the classes, label by label, where class folders gave them; else empty."""
    return tuple(getattr(samples, "class_names", ()))
