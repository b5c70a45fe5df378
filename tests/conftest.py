"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("packlight", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("packlight")

REAL = Path(os.environ.get("PACKLIGHT_REAL", Path(__file__).parents[2] / "shared" / "real"))


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real models and data for acceptance; skips where it is absent."""
    if not REAL.is_dir():
        pytest.skip(f"the real models for acceptance are not here ({REAL.name}/ is absent)")
    return REAL
