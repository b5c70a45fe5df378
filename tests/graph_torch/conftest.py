"""Fixtures for tests that train small models and run them."""

from __future__ import annotations

from graph_bench import bench, process

__all__ = ["bench", "process"]
