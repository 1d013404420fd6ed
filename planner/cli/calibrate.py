"""`attn-plan calibrate`: how wrong cost and accuracy have been, as tables or one JSON document."""

from __future__ import annotations

import math
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.options import (
    HardwareOption,
    JsonOption,
    StoreOption,
    console,
    emit_json,
    open_advisor,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd

    from planner.decision.advisor import Advisor, Device

Row = dict[str, Any]


class Part(StrEnum):
    """What can be asked for alone."""

    KERNELS = "kernels"
    STACKS = "stacks"
    IMPORTED = "imported"
    CLAIMS = "claims"
    QUALITY = "quality"


PartOption = Annotated[
    list[Part] | None, typer.Option("--part", help="Only this part; may be given again.")
]


def calibrate(
    hardware: HardwareOption = None,
    part: PartOption = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """How wrong the predictions have been, on points, stacks, claims and sources held out."""
    advisor = open_advisor(store)
    device = advisor.device(hardware)
    found: dict[str, list[Row]] = {}
    for wanted in part or list(Part):
        started = time.monotonic()
        found |= PARTS[wanted](advisor, device)
        say(f"{wanted.value}: {time.monotonic() - started:.1f} s")
    if as_json:
        emit_json({"hardware": device.id} | {name: _plain(rows) for name, rows in found.items()})
    else:
        _print(device, found)


# The parts: each gives its tables by name


def _kernels(advisor: Advisor, device: Device) -> dict[str, list[Row]]:
    from planner.calibration import current, kernel_calibration
    from planner.cost.observations import observations

    points = current(_points(advisor, device))
    return {"kernels": kernel_calibration(observations(points), device.hardware)}


def _stacks(advisor: Advisor, device: Device) -> dict[str, list[Row]]:
    from planner.calibration import current, stack_calibration

    return {"stacks": stack_calibration(current(_points(advisor, device)), device.hardware)}


def _imported(advisor: Advisor, device: Device) -> dict[str, list[Row]]:
    from planner.calibration import beside_imported, current

    points = current(_points(advisor, device))
    found = beside_imported(points, device.hardware, advisor.store.environments())
    return {"imported": _records(found)}


def _claims(advisor: Advisor, device: Device) -> dict[str, list[Row]]:
    from planner.calibration import batch_curve, end_to_end, load_published

    curves = [
        {"id": published.id, **row}
        for published in load_published()
        if published.headline
        for row in _records(
            batch_curve(published, advisor.cost_model(published.hardware or device.id))
        )
    ]
    return {
        "claims": _records(end_to_end(device.id, advisor.cost_model)),
        "claims_by_batch": curves,
    }


def _quality(advisor: Advisor, device: Device) -> dict[str, list[Row]]:
    from planner.quality.calibration import misses, quality_calibration

    return {
        "quality": _records(quality_calibration(advisor.comparisons)),
        "quality_misses": _records(misses(advisor.comparisons)),
    }


PARTS: Mapping[Part, Callable[[Advisor, Device], dict[str, list[Row]]]] = {
    Part.KERNELS: _kernels,
    Part.STACKS: _stacks,
    Part.IMPORTED: _imported,
    Part.CLAIMS: _claims,
    Part.QUALITY: _quality,
}


def _points(advisor: Advisor, device: Device) -> pd.DataFrame:
    return advisor.points[advisor.points["device_id"] == device.id]


def _records(frame: pd.DataFrame) -> list[Row]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _plain(rows: Sequence[Row]) -> list[Row]:
    """As JSON has them: no NaN, no infinity, no numbers of numpy's."""
    return [{key: _plain_value(value) for key, value in row.items()} for row in rows]


def _plain_value(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Tables

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "kernels": {
        "family": "", "provider": "", "phase": "", "mode": "", "fold": "", "n": "d",
        "median_ape": ".1f", "p90_ape": ".1f", "coverage80": ".2f", "interval_score": ".3f",
        "constant_width_score": ".3f",
    },
    "stacks": {
        "phase": "", "mode": "", "fold": "", "ratio": "", "n": "d", "median_ape": ".1f",
        "p90_ape": ".1f", "median_error": "+.1f", "coverage80": ".2f",
    },
    "imported": {
        "family": "", "phase": "", "ours": "", "theirs": "", "n": "d", "median": ".2f",
        "least": ".2f", "most": ".2f", "outside": "d",
        "unsized": "d",
    },
    "claims": {
        "id": "", "device": "", "phase": "", "batch_size": "d", "context": "d",
        "published": ".3g", "predicted": ".3g", "low": ".3g", "high": ".3g", "unit": "",
        "error": "+.0%", "basis": "",
    },
    "claims_by_batch": {
        "id": "", "batch_size": "d", "model_ms": ".2f", "against_ms": ".2f", "equal": ".2f",
        "against_one": ".2f", "ceiling": ".2f",
    },
    "quality": {
        "bar": "", "what": "", "figure": ".2f", "low": ".2f", "high": ".2f", "limit": "",
        "met": "",
    },
    "quality_misses": {
        "source": "", "stratum": "", "mixer": "", "actual": ".1f", "median": ".1f", "low": ".1f",
        "high": ".1f", "beyond": ".1f", "level": "",
    },
}  # fmt: skip
"""Columns of each table on the terminal, and how their numbers are written."""

SHORT = {
    "median_ape": "median",
    "p90_ape": "p90",
    "median_error": "signed",
    "coverage80": "inside",
    "interval_score": "score",
    "constant_width_score": "constant",
}
"""Headings shorter than the columns' names."""

CAPTIONS = {
    "kernels": "A kernel's points from its others. Errors in % of the measured time; the share of "
    "points inside their 80 % interval; the interval score (smaller is better) and that of a "
    "constant width.",
    "stacks": "Stacks of blocks of at least 100 µs from their layers, from their kernels, and as "
    "the cost model adds those up. Errors in %; below 0: predicted too short.",
    "imported": "Our times over imported ones of the same operation. Outside 0.75 to 1.33, and of "
    "those not explained by a cold cache or a timing's start; --json names the causes of each.",
    "claims": "Published figures of whole models and the prediction with its 80 % interval.",
    "claims_by_batch": "What a headline without a batch can be, ms per token: both at the batch "
    "(equal), or this model at the batch against one sequence of the other.",
    "quality": "The retention model, each source predicted from the others.",
    "quality_misses": "Evaluation rows outside their 80 % interval, in points; the farthest.",
}
MAX_MISSES = 15


def _print(device: Device, found: Mapping[str, Sequence[Row]]) -> None:
    from rich.table import Table

    out = console()
    for name, rows in found.items():
        table = Table(title=f"{name}, {device.hardware.name}", caption=CAPTIONS[name],
                      title_justify="left", caption_justify="left", box=None,
                      padding=(0, 1, 0, 0))  # fmt: skip
        for column, form in COLUMNS[name].items():
            table.add_column(
                SHORT.get(column, column), justify="right" if form else "left", no_wrap=True
            )
        for row in _shown(name, rows):
            table.add_row(*(_text(row[c], form) for c, form in COLUMNS[name].items()))
        out.print(table)
        if not rows:
            out.print("  nothing to judge in this store for this device")
        out.print()


def _shown(name: str, rows: Sequence[Row]) -> Sequence[Row]:
    """The rows that a terminal has room for: imported ones by pair, the farthest misses."""
    if name == "imported" and rows:
        import pandas as pd

        from planner.calibration import ratios_by_pair

        return _records(ratios_by_pair(pd.DataFrame(rows)))
    return rows[:MAX_MISSES] if name == "quality_misses" else rows


def _text(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, form) if form else str(value)
