"""What a worker holds of a model, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Spec = tuple[str, str, list[int | str | None]]
"""Name, type in onnxruntime's words ("tensor(float)"), and axes; None: not known."""
Call = Callable[[], list[Any]]


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to run.

    prepare(feeds, fetches): a call that runs it once and gives the arrays of the outputs
    in `fetches` (None: of all); what is done only once, such as putting the feeds in
    place, is done by `prepare`, so that the call can be timed.
    """

    inputs: list[Spec]
    outputs: list[Spec]
    prepare: Callable[[Mapping[str, NDArray[Any]], list[str] | None], Call]
