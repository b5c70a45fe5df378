"""What each layer's compression costs by itself: measured on the output of the whole model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from packlight.errors import RuntimeFailure
from packlight.plan.trials import Workbench
from packlight.progress import SILENT, Progress
from packlight.recipe import Recipe

SAMPLES = 32


def measure_sensitivity(
    bench: Workbench,
    recipe: Recipe,
    names: Sequence[str],
    *,
    seconds: float = 20.0,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """The output's signal-to-noise ratio in dB when one layer alone has its choice of `recipe`.

    names: the layers to measure, the largest first where the time might not do for all.
    Returns {layer: dB}, low for sensitive layers; those that time left out are missing.
    """
    indices = bench.search_indices()[:SAMPLES]
    noise: dict[str, float] = {}
    begun = time.monotonic()
    progress.stage("measuring each layer alone", len(names))
    for name in names:
        if time.monotonic() - begun > seconds:
            break
        # Alone it has nothing before it to make up for, so that refitting would only cost time.
        alone = replace(recipe, layers=((name, recipe.choice(name)),), sequential=False)
        try:
            tried = bench.evaluate(alone, f"{name} alone", indices=indices)
        except RuntimeFailure:
            continue
        if tried.metric is not None and tried.metric.noise_db is not None:
            noise[name] = tried.metric.noise_db
        progress.step(name)
    return noise
