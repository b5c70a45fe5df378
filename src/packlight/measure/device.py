"""Which runtime stands for a target on this machine, and what the report must say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from packlight.runtime import Engine, has_engine
from packlight.runtime.browser import why_no_browser
from packlight.targets import Target

LatencyEngine = Engine | Literal["browser"]


@dataclass(frozen=True)
class Device:
    """How a target is measured here.

    latency: what files are timed in. engine: what they are run in for quality and memory.
    most_threads: more than so many cannot be timed (None: any number can).
    measured: latency is the target runtime's own. note: for the report where something else
    stands for the target; '' where nothing does.
    """

    latency: LatencyEngine
    engine: Engine
    most_threads: int | None = None
    measured: bool = True
    note: str = ""


def device_of(target: Target) -> Device:
    """How `target` is measured on this machine; with onnxruntime where its own is not installed."""
    if target.measured == "openvino":
        if has_engine("openvino"):
            return Device("openvino", "openvino")
        return _instead(
            "openvino is not installed here: latency and quality are onnxruntime's; "
            "`pip install packlight[openvino]` measures them in OpenVINO"
        )
    if target.measured == "browser":
        missing = why_no_browser()
        if not missing:
            return Device("browser", "onnxruntime", most_threads=1)
        return _instead(f"latency is that of onnxruntime on this machine. {missing}")
    if target.measured == "predicted":
        return _instead(
            f"latency is predicted from this machine's processor in onnxruntime: it was not "
            f"measured on the target ({target.title})"
        )
    return Device("onnxruntime", "onnxruntime")


def _instead(note: str) -> Device:
    return Device("onnxruntime", "onnxruntime", measured=False, note=note)
