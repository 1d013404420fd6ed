"""Published times and speed-ups of whole models against what the cost model says of them.

`data/end_to_end` holds what others published, each with its source, date and what it does not
tell. Three kinds of facts: a speed-up at a stated batch and context; a straight line of time per
token over context; a headline whose batch is not told, which `batch_curve` takes apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from planner import catalog
from planner.architecture import Architecture
from planner.cost.basis import worst
from planner.cost.model import CostModel, PhaseCost
from planner.errors import UsageError
from planner.workload import parse_tokens

FOLDER = "end_to_end"
KEYS = frozenset(
    ("id", "title", "model", "against", "hardware", "source", "read_on", "notes", "points", "line",
     "headline")
)  # fmt: skip
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

CostModels = Callable[[str], CostModel]
"""The cost model of a device by its id."""


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """How many times faster than `against`, as published."""

    phase: Literal["prefill", "decode"]
    context: str
    batch_size: int
    speedup: float
    where: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """Time per output token of one sequence, a straight line over context."""

    intercept_ms: float
    slope_ms_per_token: float
    contexts: tuple[str, ...]

    def at(self, context: int) -> float:
        return self.intercept_ms + self.slope_ms_per_token * context


@dataclass(frozen=True, kw_only=True)
class Headline:
    """Times per token of a model and of what it is compared with, whose batches are not told."""

    context: str
    speedup: float
    model_ms: float
    against_ms: float
    where: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """One publication on one model. `hardware` is "" where it is not told; `against` is the ratio
    of the same skeleton that it was compared with."""

    id: str
    title: str
    model: str
    against: str
    hardware: str
    source: str
    read_on: str
    notes: str
    points: tuple[SpeedUp, ...]
    line: Line | None
    headline: Headline | None

    @property
    def architecture(self) -> Architecture:
        return catalog.load_model(self.model)

    @property
    def compared(self) -> Architecture:
        """The same skeleton at the ratio `against`."""
        arch = self.architecture
        return arch.with_mixer(arch.linear_mixer or "full_attention", self.against)


def load_published() -> list[Published]:
    """What `data/end_to_end` holds. Raises: UsageError for a file that is not as it should be."""
    return [_published(id, data) for id, data in catalog.entries(FOLDER).items()]


def _published(id: str, data: Mapping[str, Any]) -> Published:
    where = f"{FOLDER}/{id}.toml"
    catalog.check_keys(data, known=KEYS, required=("title", "model"), where=where)
    if "line" in data and "hardware" not in data:
        raise UsageError(f"{where}: a line of times needs the hardware it was measured on")
    if ("points" in data or "headline" in data) and "against" not in data:
        raise UsageError(f"{where}: a speed-up needs `against`, the ratio it is compared with")
    try:
        line = dict(data.get("line", {}))
        return Published(
            id=id,
            title=data["title"],
            model=data["model"],
            against=data.get("against", ""),
            hardware=data.get("hardware", ""),
            source=data["source"],
            read_on=data["read_on"],
            notes=data.get("notes", ""),
            points=tuple(SpeedUp(**point) for point in data.get("points", ())),
            line=Line(**{**line, "contexts": tuple(line.pop("contexts"))}) if line else None,
            headline=Headline(**data["headline"]) if "headline" in data else None,
        )
    except (TypeError, KeyError) as error:
        raise UsageError(f"{where}: {error}") from None


# Against the cost model

COLUMNS = (
    "id", "what", "device", "phase", "batch_size", "context", "unit", "published", "predicted",
    "low", "high", "error", "inside", "basis", "where", "source", "read_on", "notes",
)  # fmt: skip


def end_to_end(device: str, cost_models: CostModels) -> pd.DataFrame:
    """One row per published figure: `published` and `predicted` in `unit` ("x" or "ms") with an
    80 % interval, `error` the prediction over the figure, less 1. Publications that do not tell
    their device are asked of `device`."""
    rows = [
        row
        for published in load_published()
        for row in _rows(published, published.hardware or device, cost_models)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(published: Published, device: str, cost_models: CostModels) -> Iterator[dict[str, Any]]:
    model = cost_models(device)
    told = {
        "id": published.id,
        "what": published.title,
        "device": device,
        "source": published.source,
        "read_on": published.read_on,
        "notes": published.notes,
    }
    for point in published.points:
        yield told | _speedup(model, published, point)
    if published.line:
        for text in published.line.contexts:
            yield told | _time(model, published, published.line, parse_tokens(text))


def _speedup(model: CostModel, published: Published, point: SpeedUp) -> dict[str, Any]:
    context = parse_tokens(point.context)
    mine, theirs = (
        _pass(model, arch, point.phase, point.batch_size, context)
        for arch in (published.architecture, published.compared)
    )
    found, factor = theirs.seconds / mine.seconds, math.exp(log_ratio_half(theirs, mine))
    return {
        "phase": point.phase,
        "batch_size": point.batch_size,
        "context": context,
        "unit": "x",
        "basis": worst((mine.basis, theirs.basis)).label,
        "where": point.where,
    } | _judged(point.speedup, found, found / factor, found * factor)


def _time(model: CostModel, published: Published, line: Line, context: int) -> dict[str, Any]:
    found = _pass(model, published.architecture, "decode", 1, context)
    return {
        "phase": "decode",
        "batch_size": 1,
        "context": context,
        "unit": "ms",
        "basis": found.basis.label,
        "where": "the fitted line",
    } | _judged(line.at(context), 1e3 * found.seconds, 1e3 * found.low, 1e3 * found.high)


def _judged(figure: float, predicted: float, low: float, high: float) -> dict[str, Any]:
    return {
        "published": figure,
        "predicted": predicted,
        "low": low,
        "high": high,
        "error": predicted / figure - 1,
        "inside": low <= figure <= high,
    }


def _pass(model: CostModel, arch: Architecture, phase: str, batch: int, context: int) -> PhaseCost:
    """A prefill of `context` tokens, or a decode step after them."""
    if phase == "prefill":
        return model.phase(arch, batch, context, 0)
    return model.phase(arch, batch, 1, context)


def log_ratio_half(one: PhaseCost, other: PhaseCost) -> float:
    """80 % half-width of log(one / other): the errors of kernels that both run cancel."""
    mine, theirs = one.half_widths("high"), other.half_widths("high")
    groups = mine.keys() | theirs.keys()
    shares = [mine.get(g, 0.0) / one.seconds - theirs.get(g, 0.0) / other.seconds for g in groups]
    return float(np.linalg.norm(shares))


def batch_curve(published: Published, model: CostModel) -> pd.DataFrame:
    """What a headline without a batch can be: time per token over sequences decoded at once.

    `equal` compares both models at the batch; `against_one` a batch of this model with one
    sequence of the other, per token. The equal one cannot pass `ceiling`, the quotient of what
    one sequence adds to a step.
    """
    if published.headline is None:
        raise UsageError(f"{published.id} has no headline to take apart")
    context = parse_tokens(published.headline.context)
    mine, theirs = (
        [_pass(model, arch, "decode", batch, context).seconds for batch in BATCHES]
        for arch in (published.architecture, published.compared)
    )
    batches = np.array(BATCHES)
    mine_s, theirs_s = np.array(mine), np.array(theirs)
    return pd.DataFrame(
        {
            "batch_size": batches,
            "model_ms": 1e3 * mine_s / batches,
            "against_ms": 1e3 * theirs_s / batches,
            "equal": theirs_s / mine_s,
            "against_one": theirs_s[0] / (mine_s / batches),
        }
    ).assign(
        ceiling=published.compared.kv_slope_bytes(context)
        / published.architecture.kv_slope_bytes(context)
    )
