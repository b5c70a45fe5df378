"""What each device and its runtime run fast."""

from packlight.targets.table import TARGETS, Target, find_target

__all__ = ["TARGETS", "Target", "find_target"]
