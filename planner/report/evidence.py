"""Evidence: the published rows behind the recommended design's score, and their sources.

>>> source_url("arXiv:2507.06457v1")
'https://arxiv.org/abs/2507.06457v1'
>>> source_url("a talk")
''
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from planner.decision.recommendation import Recommendation

if TYPE_CHECKING:
    from planner.decision.advisor import Advisor

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5}(v\d+)?)")
_LINK = re.compile(r"https?://[^\s<>\"']+")


@dataclass(frozen=True, kw_only=True)
class EvidenceSource:
    """A source behind the score and how many of its rows carry it. `url` is "" if it has none;
    title, reference and tier are, too, where the store was not at hand."""

    key: str
    title: str
    authors: str
    year: int | None
    reference: str
    url: str
    tier: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class EvidenceLine:
    """One published number against its control, in percent; lengths in tokens, sizes in 10^9."""

    id: str
    source: str
    location: str
    model: str
    mixer: str
    ratio: str
    task_class: str
    task: str
    eval_length: float
    params_b: float
    value: float
    control_value: float
    points: float


def source_url(reference: str) -> str:
    """Where a citation can be read: an arXiv number's page, a web address as it is."""
    if found := _ARXIV.search(reference):
        return f"https://arxiv.org/abs/{found[1]}"
    link = _LINK.search(reference)
    return link[0].rstrip(".,;)") if link else ""


def lines_of(found: Recommendation, advisor: Advisor | None) -> tuple[EvidenceLine, ...]:
    """The rows that carry the score, by source; none without the store they came from."""
    if advisor is None or found.winner is None:
        return ()
    wanted = set(found.winner.quality.row_ids)
    table = advisor.comparisons
    rows: Any = table[table["id"].isin(wanted)].sort_values(["source", "id"]).itertuples()
    return tuple(
        EvidenceLine(
            id=row.id,
            source=row.source,
            location=row.location,
            model=row.model,
            mixer=row.mixer,
            ratio=row.ratio,
            task_class=row.task_class,
            task=row.task,
            eval_length=float(row.eval_length),
            params_b=float(row.params_b),
            value=float(row.value),
            control_value=float(row.control_value),
            points=float(row.points),
        )
        for row in rows
    )


def sources_of(found: Recommendation, advisor: Advisor | None) -> tuple[EvidenceSource, ...]:
    """The sources that carry the score, the one with the most rows first."""
    if found.winner is None:
        return ()
    keys = found.winner.quality.sources
    if advisor is None:
        return tuple(_unread(key) for key in keys)
    counts = pd.Series([line.source for line in lines_of(found, advisor)]).value_counts()
    rows: Any = advisor.sources.itertuples()
    table = {row.key: row for row in rows}
    known = [_source(table[key], int(counts.get(key, 0))) for key in keys]
    return tuple(sorted(known, key=lambda s: (-s.rows, s.key)))


def _source(row: Any, rows: int) -> EvidenceSource:
    return EvidenceSource(
        key=row.key,
        title=row.title,
        authors=row.authors,
        year=None if pd.isna(row.year) else int(row.year),
        reference=row.source,
        url=source_url(row.source),
        tier=row.tier,
        rows=rows,
    )


def _unread(key: str) -> EvidenceSource:
    return EvidenceSource(
        key=key, title="", authors="", year=None, reference="", url="", tier="", rows=0
    )
