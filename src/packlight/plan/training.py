"""How long a run trains, and where interrupted training leaves where it stood."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from packlight.errors import WrongUsage
from packlight.graph.torch.enter import check_torch
from packlight.recipe import Recipe

HEALING = 2 / 3
"""Share of the minutes for what pruning leaves, in floats; the rest is for the rounded file."""

_HEALED, _TUNED, CHOSEN = "healed.npz", "tuned.npz", "chosen.json"


@dataclass(frozen=True)
class Training:
    """How long is trained: minutes, or exactly the steps of a recipe.

    folder: where interrupted training leaves where it stood; None for nowhere.
    """

    heal_minutes: float = 0.0
    tune_minutes: float = 0.0
    heal_steps: int = 0
    tune_steps: int = 0
    folder: Path | None = None

    @property
    def any(self) -> bool:
        """Whether anything is trained."""
        return self.heals or self.tunes

    @property
    def heals(self) -> bool:
        """Whether what pruning leaves is trained."""
        return self.heal_minutes > 0 or self.heal_steps > 0

    @property
    def tunes(self) -> bool:
        """Whether the chosen file is trained."""
        return self.tune_minutes > 0 or self.tune_steps > 0

    @property
    def healed(self) -> Path | None:
        """The checkpoint of healing."""
        return None if self.folder is None else self.folder / _HEALED

    @property
    def tuned(self) -> Path | None:
        """The checkpoint of tuning."""
        return None if self.folder is None else self.folder / _TUNED

    def clear(self) -> None:
        """Remove what an interruption would have needed, and the folder where it holds no more."""
        if self.folder is None or not self.folder.is_dir():
            return
        for name in (_HEALED, _TUNED, CHOSEN):
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something of somebody else's
            self.folder.rmdir()


NO_TRAINING = Training()


def plan_training(
    minutes: float, *, prunes: bool, given: Recipe | None, folder: Path | None
) -> Training:
    """How long each part is trained: by `--heal-minutes`, or by the steps of a recipe.

    prunes: channels go before anything is rounded. Raises WrongUsage for minutes below 0, and
    where a recipe says how many steps; MissingExtra where training needs PyTorch.
    """
    if not 0 <= minutes < float("inf"):
        raise WrongUsage(f"--heal-minutes {minutes}: give minutes, 0 or more.")
    heal_steps = given.heal_steps if given is not None and given.thins and not prunes else 0
    tune_steps = given.tune_steps if given is not None else 0
    if minutes and (heal_steps or tune_steps):
        raise WrongUsage(
            "--heal-minutes and a recipe with heal_steps or tune_steps contradict each other: "
            "leave out the one or the other."
        )
    healing = HEALING * minutes if prunes else 0.0
    found = Training(healing, minutes - healing, heal_steps, tune_steps, folder)
    if found.any:
        check_torch()
    return found
