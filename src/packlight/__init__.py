"""packlight makes a trained model smaller and faster, and proves that it still does its job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packlight.errors import PacklightError
from packlight.version import __version__

if TYPE_CHECKING:
    from packlight.api import (
        Comparison,
        Forecast,
        Result,
        Verification,
        compare,
        compress,
        inspect,
        load,
        pack,
        to_torch,
        unpack,
        verify,
    )
    from packlight.graph.anatomy import Anatomy

__all__ = [
    "Anatomy",
    "Comparison",
    "Forecast",
    "PacklightError",
    "Result",
    "Verification",
    "__version__",
    "compare",
    "compress",
    "inspect",
    "load",
    "pack",
    "to_torch",
    "unpack",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Imported when first used, so that `packlight --help` answers at once.
    if name == "Anatomy":
        from packlight.graph.anatomy import Anatomy

        return Anatomy
    if name in __all__:
        import packlight.api

        return getattr(packlight.api, name)
    raise AttributeError(f"module 'packlight' has no attribute {name!r}")
