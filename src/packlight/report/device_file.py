"""What the report says of the file for the target's own runtime."""

from __future__ import annotations

from packlight.measure.evidence import DeviceFile, Evidence
from packlight.report.units import format_bytes, format_ms, format_number, format_percent
from packlight.report.visible import escape_prose
from packlight.report.wording import (
    VERDICTS,
    as_sentence,
    count,
    find_factor,
    format_metric,
    say_factor,
)


def write_device_file(evidence: Evidence) -> str:
    """The part of the page about the device's file; '' where the target has none of its own."""
    return "".join(f"<p>{escape_prose(line)}</p>" for line in describe_device_file(evidence))


def describe_device_file(evidence: Evidence) -> tuple[str, ...]:
    """The device's file in sentences; () where the target has none of its own."""
    device = evidence.device_file
    if device is None:
        return ()
    if not device.files:
        return (as_sentence(f"{device.title}: {device.reason}"),)
    size = find_factor(evidence.size_bytes.original, device.size_bytes)
    told = [
        f"{' with '.join(device.files)} ({device.title}) has {format_bytes(device.size_bytes)}, "
        f"{say_factor(size, 'smaller than', 'larger than', 'as much as')} the original, and holds "
        "the same layers in the same numbers as model.onnx."
    ]
    measured = _measured(device)
    if measured:
        told.append(f"Measured in {device.runtime}: {measured}.")
    verdict = f"{VERDICTS[device.verdict]}: " if device.verdict else ""
    if device.reason:
        told.append(as_sentence(f"{verdict}{device.reason}"))
    return tuple(told)


def _measured(device: DeviceFile) -> str:
    said = []
    metric, latency = device.metric, device.latency_ms
    if metric is not None:
        before, after = (
            format_metric(metric.name, v) for v in (metric.original, metric.compressed)
        )
        said.append(
            f"on {count(metric.samples, 'sample')} {metric.name} {after} (the original, in "
            f"onnxruntime, {before})"
        )
        if metric.agreement is not None and metric.name != "top-1 agreement":
            said.append(f"the same answer as the original {format_percent(metric.agreement)}")
        if metric.noise_db is not None:
            said.append(f"output SNR {format_number(metric.noise_db)} dB")
    if latency is not None:
        low, high = latency.ratio_interval_95
        said.append(
            f"{format_ms(latency.compressed)} a run with one thread, the original written in the "
            f"same way {format_ms(latency.original)} (ratio {latency.ratio:.2f}, {low:.2f} to "
            f"{high:.2f})"
        )
    if device.peak_memory_bytes is not None:
        said.append(f"{format_bytes(device.peak_memory_bytes)} at most in memory")
    if device.energy_mj is not None:
        said.append(f"{format_number(device.energy_mj)} mJ of the whole processor a run")
    return ", ".join(said)
