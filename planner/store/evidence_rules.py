"""What a published number is, and the rules a file of them has to keep.

A rule broken is refused with file, row and reason, in one line; nothing is guessed. What a source
does not state is blank in the file and None here.

    >>> layer_share("3:1", None, None)
    0.25
    >>> layer_share("44:5", 49, 5)      # the layer list is the truth: 5 of 49
    0.10204081632653061
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import gcd
from pathlib import Path
from typing import Any, Literal, get_args

from planner.errors import EnvironmentProblem, UsageError

TaskClass = Literal["retrieval", "icl", "multi_hop", "summarization", "general"]
TASK_CLASSES: tuple[TaskClass, ...] = get_args(TaskClass)

MixerKind = Literal["full", "windowed", "recurrent", "sparse", "convolution"]

MIXER_KINDS: dict[str, MixerKind] = {
    "full_attention": "full",
    "mla": "full",
    "sliding_window": "windowed",
    **dict.fromkeys(
        (
            "linear_attention", "lightning", "gated_deltanet", "kda", "mamba2", "mamba",
            "deltanet", "gla", "retnet", "hgrn", "hgrn2", "based", "jetblock", "cosformer2",
            "rwkv5", "rwkv6", "rwkv7", "rg_lru", "s4",
        ),
        "recurrent",
    ),
    "hyena": "convolution",
    "h3": "convolution",
    "block_sparse": "sparse",
}  # fmt: skip
"""Every mixer that evidence names; those that `planner.mixers` has on paper are among them."""

METRICS = (
    "accuracy",
    "score",
    "rouge_l",
    "perplexity",
    "bits_per_byte",
    "delta_points",
    "delta_perplexity",
)
"""accuracy and score are percent; score is a benchmark's own (F1, a judge, a mean of several)."""
PERCENT_METRICS = ("accuracy", "score", "rouge_l")
FITTED_METRICS = ("accuracy", "score")

PLACEMENTS = ("uniform", "start", "middle", "end", "first_last", "searched", "explicit")
LAYOUTS = ("layers", "parallel_heads", "full_at_decode")
"""Whether a layer ratio says it all: heads of two kinds side by side, or full attention switched
on for decode, cannot be told by one."""
ORIGINS = ("scratch", "converted")
TIERS = (
    "primary",
    "primary_text",
    "transcription",
    "secondary",
    "model_card_copy",
    "imported",
)
USES = ("evaluate", "fit", "show")

MIN_CONTROL = 20.0
MIN_ABOVE_CHANCE = 10.0
MAX_SIZE_RATIO = 1.25
"""An evaluated comparison has a control of at least 20 points, 10 above chance, of its size."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where numbers come from: one citation."""

    key: str
    title: str
    authors: str
    year: int | None
    source: str
    tier: str
    read_from: str
    read_on: str


@dataclass(frozen=True, kw_only=True)
class EvidenceRow:
    """One published (or imported) number and all that is known about how it came to be.

    `ratio` is linear:full over the layers that have a mixer, "1:0" without a full one, "0:1" for
    full attention. `eval_length`, `train_length`, `needle_distance` and `window` are tokens.
    `chance` is the score of guessing. `aggregate_of` names the parts of a mean.
    """

    id: str
    source: str
    location: str
    model: str
    mixer: str
    second_mixer: str
    full_mixer: str
    layout: str
    ratio: str
    n_layers: int | None
    n_full: int | None
    full_indices: tuple[int, ...]
    placement: str
    origin: str
    params_b: float | None
    active_params_b: float | None
    train_tokens_b: float | None
    train_length: int | None
    eval_length: int | None
    needle_distance: int | None
    window: int | None
    state_elements: int | None
    kv_heads: int | None
    position: str
    task: str
    task_class: str
    subclass: str
    k_shot: int | None
    metric: str
    value: float
    chance: float | None
    seeds: int | None
    tier: str
    figure_read: bool
    selected_best: bool
    aggregate_of: str
    duplicate_of: str
    note: str

    @property
    def full_share(self) -> float | None:
        return layer_share(self.ratio, self.n_layers, self.n_full)

    @property
    def is_control(self) -> bool:
        """Full attention in every layer."""
        return self.ratio == "0:1"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A row against full attention of the same recipe, or against an assumed level.

    `use`: evaluate (fitted, and the model is tested on it), fit (fitted), show (neither).
    """

    row: str
    control: str
    assumed_control: float | None
    use: str
    reason: str


COLUMNS = tuple(f.name for f in fields(EvidenceRow))
COMPARISON_COLUMNS = tuple(f.name for f in fields(Comparison))

_RATIO = re.compile(r"(\d+):(\d+)")
_ID = re.compile(r"[A-Za-z0-9_.:-]+")


def layer_share(ratio: str, n_layers: int | None, n_full: int | None) -> float | None:
    """Full-attention layers among those with a mixer: counted where known, else by the ratio."""
    if n_layers and n_full is not None:
        return n_full / n_layers
    match = _RATIO.fullmatch(ratio)
    if match is None:
        return None
    linear, full = int(match[1]), int(match[2])
    return full / (linear + full)


class _Cells:
    """The cells of one row, read with their rule; `where` names file and row in a complaint."""

    def __init__(self, cells: Mapping[str, str], where: str) -> None:
        self.cells, self.where = cells, where

    def fail(self, reason: str) -> UsageError:
        return UsageError(f"{self.where}: {reason}")

    def text(self, name: str, *, required: bool = False) -> str:
        value = (self.cells.get(name) or "").strip()
        if required and not value:
            raise self.fail(f"{name} is blank")
        return value

    def among(self, name: str, allowed: Sequence[str], *, blank: bool = False) -> str:
        value = self.text(name, required=not blank)
        if value and value not in allowed:
            raise self.fail(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        return value

    def number(self, name: str, low: float, high: float = math.inf) -> float | None:
        value = self.text(name)
        if not value:
            return None
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not (math.isfinite(found) and low <= found <= high):
            span = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise self.fail(f"{name} must be a number {span}, got {value!r}")
        return found

    def count(self, name: str, low: int = 0) -> int | None:
        value = self.text(name)
        if value and not value.isdecimal():
            raise self.fail(f"{name} must be a whole number, got {value!r}")
        found = self.number(name, low)
        return None if found is None else int(found)

    def flag(self, name: str) -> bool:
        return self.among(name, ("yes", "no")) == "yes"

    def indices(self, name: str) -> tuple[int, ...]:
        words = self.text(name).split()
        if not all(word.isdecimal() for word in words):
            raise self.fail(f"{name} must be layer numbers with blanks between, got {words!r}")
        return tuple(int(word) for word in words)


VALUE_RANGE = {
    **dict.fromkeys(PERCENT_METRICS, (0.0, 100.0)),
    "perplexity": (1.0, math.inf),
    "bits_per_byte": (0.0, math.inf),
    "delta_points": (-100.0, 100.0),
    "delta_perplexity": (-math.inf, math.inf),
}


def parse_row(cells: Mapping[str, str], where: str) -> EvidenceRow:
    """A checked row from a file's cells. Raises UsageError: "quality.csv row 7: …"."""
    c = _Cells(cells, where)
    metric = c.among("metric", METRICS)
    value = c.number("value", *VALUE_RANGE[metric])
    if value is None:
        raise c.fail("value is blank")
    mixers = tuple(MIXER_KINDS)
    row = EvidenceRow(
        id=_identifier(c, "id"),
        source=_identifier(c, "source"),
        location=c.text("location"),
        model=c.text("model", required=True),
        mixer=c.among("mixer", mixers, blank=True),
        second_mixer=c.among("second_mixer", mixers, blank=True),
        full_mixer=c.among("full_mixer", ("full_attention", "mla"), blank=True),
        layout=c.among("layout", LAYOUTS),
        ratio=c.text("ratio"),
        n_layers=c.count("n_layers", 1),
        n_full=c.count("n_full"),
        full_indices=c.indices("full_indices"),
        placement=c.among("placement", PLACEMENTS, blank=True),
        origin=c.among("origin", ORIGINS),
        params_b=c.number("params_b", 1e-6),
        active_params_b=c.number("active_params_b", 1e-6),
        train_tokens_b=c.number("train_tokens_b", 0.0),
        train_length=c.count("train_length", 1),
        eval_length=c.count("eval_length", 1),
        needle_distance=c.count("needle_distance"),
        window=c.count("window", 1),
        state_elements=c.count("state_elements", 1),
        kv_heads=c.count("kv_heads", 1),
        position=c.text("position"),
        task=c.text("task", required=True),
        task_class=c.among("task_class", TASK_CLASSES),
        subclass=c.text("subclass"),
        k_shot=c.count("k_shot"),
        metric=metric,
        value=value,
        chance=c.number("chance", 0.0, 100.0),
        seeds=c.count("seeds", 1),
        tier=c.among("tier", TIERS),
        figure_read=c.flag("figure_read"),
        selected_best=c.flag("selected_best"),
        aggregate_of=c.text("aggregate_of"),
        duplicate_of=c.text("duplicate_of"),
        note=c.text("note"),
    )
    _check_layers(row, c)
    return row


def _identifier(c: _Cells, name: str) -> str:
    value = c.text(name, required=True)
    if not _ID.fullmatch(value):
        raise c.fail(f"{name} may have letters, digits and _ . : -, got {value!r}")
    return value


def _check_layers(row: EvidenceRow, c: _Cells) -> None:
    """Ratio, counts and layer list tell one story."""
    if not (row.mixer or row.full_mixer):
        raise c.fail("neither mixer nor full_mixer is given")
    match = _RATIO.fullmatch(row.ratio)
    if row.ratio and (match is None or row.ratio == "0:0"):
        raise c.fail(f"ratio must be linear:full such as 3:1, got {row.ratio!r}")
    if row.n_full is not None and row.n_layers is not None:
        if row.n_full > row.n_layers:
            raise c.fail(f"n_full {row.n_full} is more than n_layers {row.n_layers}")
        linear = row.n_layers - row.n_full
        if match and int(match[1]) * row.n_full != int(match[2]) * linear:
            counted = gcd(linear, row.n_full) or 1
            raise c.fail(
                f"ratio {row.ratio} disagrees with {row.n_full} full layers of {row.n_layers}, "
                f"which is {linear // counted}:{row.n_full // counted}"
            )
    if row.full_indices:
        if row.n_full is not None and len(row.full_indices) != row.n_full:
            raise c.fail(
                f"full_indices lists {len(row.full_indices)} layers, n_full is {row.n_full}"
            )
        if row.n_layers is not None and max(row.full_indices) >= row.n_layers:
            raise c.fail(f"full_indices goes to {max(row.full_indices)}, of {row.n_layers} layers")
    if row.is_control and row.mixer:
        raise c.fail(f"ratio 0:1 is full attention, but mixer is {row.mixer!r}")


def parse_comparison(
    cells: Mapping[str, str], rows: Mapping[str, EvidenceRow], where: str
) -> Comparison:
    """A checked comparison. Raises UsageError: "comparisons.csv row 7: …"."""
    c = _Cells(cells, where)
    found = Comparison(
        row=c.text("row", required=True),
        control=c.text("control"),
        assumed_control=c.number("assumed_control", 0.0, 100.0),
        use=c.among("use", USES),
        reason=c.text("reason"),
    )
    for name in (found.row, found.control):
        if name and name not in rows:
            raise c.fail(f"no row {name!r} in the evidence")
    if bool(found.control) == (found.assumed_control is not None):
        raise c.fail("exactly one of control and assumed_control has to be given")
    row = rows[found.row]
    if row.metric.startswith("delta_"):
        raise c.fail(f"row {row.id} is a difference already")
    if found.use != "evaluate" and not found.reason:
        raise c.fail(f"use {found.use!r} needs a reason")
    if found.control:
        _check_control(row, rows[found.control], c)
    if found.use == "evaluate":
        _check_evaluated(row, rows.get(found.control), c)
    return found


def _check_control(row: EvidenceRow, control: EvidenceRow, c: _Cells) -> None:
    if not control.is_control:
        raise c.fail(f"control {control.id} is not full attention in every layer")
    if (control.task, control.metric) != (row.task, row.metric):
        raise c.fail(
            f"row and control differ in task or metric: {row.task} {row.metric}, "
            f"{control.task} {control.metric}"
        )


def _check_evaluated(row: EvidenceRow, control: EvidenceRow | None, c: _Cells) -> None:
    """The bar for a row that the model is tested on."""
    reasons = {
        "it has no control": control is None,
        f"metric {row.metric} is another scale": row.metric not in FITTED_METRICS,
        "it is converted, not trained from scratch": row.origin != "scratch",
        "no layer ratio describes it": row.layout != "layers" or row.full_share is None,
        "it repeats another row": bool(row.duplicate_of),
    }
    if control is not None:
        chance = row.chance if row.chance is not None else control.chance
        reasons[f"its control is below {MIN_CONTROL:g}"] = control.value < MIN_CONTROL
        reasons[f"its control is less than {MIN_ABOVE_CHANCE:g} above chance"] = (
            chance is not None and control.value < chance + MIN_ABOVE_CHANCE
        )
        reasons["its control has another size"] = not _same(
            row.params_b, control.params_b, MAX_SIZE_RATIO
        )
        reasons["its control saw other tokens"] = not _same(
            row.train_tokens_b, control.train_tokens_b, MAX_SIZE_RATIO
        )
        reasons["its control is beyond its trained length"] = bool(
            control.train_length and control.eval_length
            and control.eval_length > control.train_length
        )  # fmt: skip
    for reason, broken in reasons.items():
        if broken:
            raise c.fail(f"row {row.id} cannot be evaluated: {reason}")


def _same(a: float | None, b: float | None, factor: float) -> bool:
    """Equal within a factor; unknown sizes are taken at the source's word that they match."""
    return a is None or b is None or max(a, b) <= factor * min(a, b)


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells) of each row. Raises UsageError for a wrong header or encoding."""
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.reader(handle, strict=True)
            header = next(reader, [])
            _check_header(path, header, columns)
            for cells in reader:
                if len(cells) != len(header):
                    raise UsageError(
                        f"{path.name} row {reader.line_num}: {len(cells)} cells, the header has "
                        f"{len(header)}"
                    )
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except FileNotFoundError:
        raise EnvironmentProblem(f"{path} does not exist") from None
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path.name} is not a CSV file in UTF-8: {error}") from None


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    unknown = [name for name in header if name not in columns]
    missing = [name for name in columns if name not in header]
    if unknown:
        raise UsageError(
            f"{path.name}: unknown column {unknown[0]!r}; known: {', '.join(columns)}"
        )
    if missing:
        raise UsageError(f"{path.name}: column {missing[0]!r} is missing")
    if len(set(header)) != len(header):
        raise UsageError(f"{path.name}: a column stands twice in the header")


def as_cells(row: EvidenceRow | Comparison) -> dict[str, Any]:
    """A row as a CSV file writes it: blank for None, yes or no, layer numbers with blanks."""
    return {f.name: _cell(getattr(row, f.name)) for f in fields(row)}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(str(v) for v in value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)
