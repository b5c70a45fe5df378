"""The part of the page that tells which channels were removed, and why others stayed."""

from __future__ import annotations

from packlight.measure.evidence import Evidence, Thinning
from packlight.report.sections import write_table
from packlight.report.units import format_number, format_percent
from packlight.report.visible import escape, escape_prose
from packlight.report.wording import count

_KINDS = {
    "matrix": "two products",
    "channel": "a kernel with fewer outputs, then one of a single tap",
    "spatial": "a column, then a row",
}


def write_channels(evidence: Evidence) -> str:
    """The groups of channels with how many each keeps; '' where nothing was removed."""
    thinning = evidence.thinning
    if thinning is None:
        return ""
    rows = [
        (
            f"<bdi>{escape(one.name, limit=120)}</bdi>",
            f"{one.size:,}",
            f"{one.kept:,}",
            escape_prose(one.reason),
        )
        for one in thinning.channels
    ]
    table = write_table(
        ("Channels made by", "Before", "After", "Why all stay"),
        rows,
        numbers={1, 2},
        name="Channels by group",
    )
    text = "".join(f"<p>{escape_prose(line)}</p>" for line in describe_thinning(thinning))
    return f"{text}{table}{_write_ranks(thinning)}"


def _write_ranks(thinning: Thinning) -> str:
    """The layers that are two now; '' where there are none."""
    if not thinning.ranks:
        return ""
    rows = [
        (f"<bdi>{escape(one.name, limit=120)}</bdi>", _KINDS[one.kind], f"{one.rank:,}")
        for one in thinning.ranks
    ]
    return write_table(
        ("Layer", "Now", "Rank"), rows, numbers={2}, name="Layers that are two of low rank"
    )


def describe_thinning(thinning: Thinning) -> tuple[str, ...]:
    """What was removed, and how the rest was mended, in sentences."""
    before = sum(one.size for one in thinning.channels)
    gone = before - sum(one.kept for one in thinning.channels)
    share = 1 - thinning.macs_left / max(thinning.macs_original, 1)
    told = [
        f"{count(gone, 'channel')} of {before:,} are gone, and with them {format_percent(share)} "
        f"of the multiplications. Those went first that are missed least once the layers that "
        "read them are fitted again; every layer that is left was then fitted to what the original "
        "gives on calibration samples, without labels."
    ]
    if thinning.ranks:
        told = [
            f"{format_percent(share)} of the multiplications are gone. "
            f"{count(len(thinning.ranks), 'layer')} became two of low rank each, with the factors "
            "that lose least of what the layer gave on calibration samples."
        ]
        if gone:
            told[0] += (
                f" {count(gone, 'channel')} of {before:,} went, first those that are missed least "
                "once the layers that read them are fitted again."
            )
        told[0] += (
            " Every layer that is left was then fitted to what the original gives on calibration "
            "samples, without labels."
        )
    if thinning.removed:
        told.append(
            f"Whole residual branches went with them, {count(len(thinning.removed), 'block')} that "
            f"what is left makes up for best: {', '.join(thinning.removed)}."
        )
    if thinning.heal_steps and thinning.loss_before is not None:
        told.append(
            f"Then it was trained towards the original for {count(thinning.heal_steps, 'step')}: "
            f"on calibration samples held out, the loss went from "
            f"{format_number(thinning.loss_before)} to {format_number(thinning.loss_after or 0.0)}."
        )
    told += [note[:1].upper() + note[1:] + "." for note in thinning.notes]
    return tuple(told)
