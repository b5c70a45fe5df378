"""Constants that are nearly the same, stored once.

Equal ones are merged by `simplify`, transposed ones by `tie_transposed`; what differs by rounding
noise (a table saved twice, in two precisions) is another constant to both. Here the first of them
stands in for the others, and the notes say by how much they differed. Each value is held to its
own size: beside a mask's -3e38 whatever else it holds would look like noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.errors import WrongUsage
from packlight.graph.rewrite.tie import LEAST_BYTES
from packlight.graph.walk import constant_of, shape_of

MOST_TOLERANCE = 0.01
"""Beyond this constants are not the same but alike."""


def share_similar(model: ir.Model, *, tolerance: float = 1e-6) -> dict[str, str]:
    """Merge float constants of the main graph that differ little, in place; notes by name.

    tolerance: the largest difference, as a share of the value that stays.
    Constants under 1 KiB, those that hold NaN or infinities, and those that are outputs or inputs
    of the model, stay.
    Raises WrongUsage for a tolerance that is not from 0 to 0.01.
    """
    if not 0 <= tolerance <= MOST_TOLERANCE:
        raise WrongUsage(
            f"Constants are merged that differ by at most {MOST_TOLERANCE:g} of each value, "
            f"not by {tolerance:g}: give a tolerance from 0 to {MOST_TOLERANCE:g}."
        )
    kept: dict[tuple[str, tuple[int, ...]], list[tuple[ir.Value, NDArray[Any], float]]] = {}
    notes = {}
    for value in list(model.graph.initializers.values()):
        tensor = constant_of(value)
        if tensor is None or tensor.nbytes < LEAST_BYTES or value.is_graph_output():
            continue
        if not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16:
            continue
        array = tensor.numpy()
        size = float(np.linalg.norm(array.astype(np.float64)))
        if not np.isfinite(size):
            continue
        same = kept.setdefault((tensor.dtype.name, shape_of(tensor)), [])
        for first, other, other_size in same:
            # Norms differ by no more than the constants do: most pairs end here.
            if abs(size - other_size) > (tolerance + 1e-9) * other_size:
                continue
            away = np.abs(array.astype(np.float64) - other)
            if not np.all(away <= tolerance * np.abs(other.astype(np.float64))):
                continue
            apart = float(away.max())
            for use in tuple(value.uses()):
                use.node.replace_input_with(use.idx, first)
            model.graph.initializers.pop(str(value.name))
            notes[str(value.name)] = (
                f"read from {first.name}, from which it differed by at most {apart:.3g}"
            )
            break
        else:
            same.append((value, array, size))
    return notes
