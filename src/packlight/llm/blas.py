"""How many threads NumPy's products take."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any


def one_blas_thread() -> AbstractContextManager[object]:
    """Keep NumPy to one thread meanwhile: its own spin between the small products of rounding.

    A tensor took 96 s with two of them on a busy machine, and 17 s with one.
    """
    libraries = _libraries()
    if libraries is None:
        return nullcontext()
    found: AbstractContextManager[object] = libraries.limit(limits=1, user_api="blas")
    return found


@cache
def _libraries() -> Any:
    """What sets the threads of libraries, looked for once: it is asked for at every few rows."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()
