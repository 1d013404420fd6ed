"""ReportModel: one recommendation as figures and sentences, ready to be shown.

The dashboard, the HTML, the Markdown and the JSON all present this record, so they cannot
disagree. It repeats everything that the answer rests on: inputs, assumptions, basis and source of
each number, what was rejected and why, and on what the times were measured.

    >>> ReportModel.of(advisor.recommend("rag"), advisor=advisor).to_json()  # doctest: +SKIP

The JSON is the record itself, keys in snake_case, times in seconds, sizes in bytes, ratios and
accuracies as factors; null where there is no figure. docs/report-format.md lists the keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from planner import __version__
from planner.decision.recommendation import Recommendation
from planner.report.designs import Design, designs_of
from planner.report.evidence import EvidenceLine, EvidenceSource, lines_of, sources_of
from planner.report.figures import Figure, figures_of
from planner.report.inputs import Input, assumptions_of, command_of, inputs_of
from planner.report.limits import LimitReport, limits_of
from planner.report.provenance import Provenance, provenance_of

if TYPE_CHECKING:
    from planner.decision.advisor import Advisor

FORMAT_VERSION = 1
"""History of the JSON: 1 first release."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of the recommended stack; `mixer` is "" for a layer without one."""

    index: int
    letter: str
    mixer: str
    title: str
    dimensions: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The recommended architecture and what decided it: evidence, cost or policy."""

    label: str
    headline: str
    mixer: str
    ratio: str
    placement: str
    pattern: str
    decided_by: str
    because: str
    basis: str


@dataclass(frozen=True, kw_only=True)
class ReasonReport:
    """Why: the sentence with the number in it, its basis and its source."""

    kind: str
    text: str
    basis: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ReportModel:
    """Everything a report repeats. `answer` is None where nothing meets the limits."""

    format_version: int
    tool_version: str
    created_at: str
    title: str
    question: str
    intent: str
    model: str
    hardware: str
    floor: float
    command: str
    link: str
    inputs: tuple[Input, ...]
    assumptions: tuple[str, ...]
    answer: Answer | None
    layers: tuple[Layer, ...]
    figures: tuple[Figure, ...]
    reasons: tuple[ReasonReport, ...]
    runner_up: Design | None
    limits: tuple[LimitReport, ...]
    designs: tuple[Design, ...]
    notes: tuple[str, ...]
    provenance: Provenance
    sources: tuple[EvidenceSource, ...]
    evidence: tuple[EvidenceLine, ...]

    @classmethod
    def of(
        cls,
        found: Recommendation,
        *,
        advisor: Advisor | None = None,
        link: str = "",
        created_at: datetime | None = None,
    ) -> ReportModel:
        """Everything about `found`. With the advisor that found it, also what it rests on:
        the environment of the measurements and the sources of the evidence."""
        designs = designs_of(found)
        return cls(
            format_version=FORMAT_VERSION,
            tool_version=__version__,
            created_at=(created_at or datetime.now(UTC)).isoformat(timespec="seconds"),
            title=found.use_case.title,
            question=found.use_case.question,
            intent=found.intent,
            model=found.model.name,
            hardware=found.hardware_name,
            floor=found.use_case.floor.retention,
            command=command_of(found),
            link=link,
            inputs=inputs_of(found),
            assumptions=assumptions_of(found),
            answer=_answer(found),
            layers=_layers(found),
            figures=figures_of(found),
            reasons=tuple(
                ReasonReport(kind=r.kind, text=r.text, basis=r.basis, source=r.source)
                for r in found.reasons
            ),
            runner_up=next((d for d in designs if d.role == "runner-up"), None),
            limits=limits_of(found),
            designs=designs,
            notes=found.notes,
            provenance=provenance_of(found, advisor),
            sources=sources_of(found, advisor),
            evidence=lines_of(found, advisor),
        )

    def figure(self, name: str) -> Figure:
        """The figure `name`; there is one of each while there is an answer."""
        return next(f for f in self.figures if f.name == name)

    @property
    def basis(self) -> str:
        """The worst basis of the recommendation's cost; "" without an answer."""
        return self.answer.basis if self.answer else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only; NaN and infinity, which JSON does not have, become None."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_markdown(self) -> str:
        from planner.report.markdown import render

        return render(self)

    def to_html(self) -> str:
        from planner.report.html import render

        return render(self)


def _answer(found: Recommendation) -> Answer | None:
    if found.winner is None:
        return None
    candidate = found.winner.candidate
    return Answer(
        label=candidate.label,
        headline=candidate.arch.describe(),
        mixer=candidate.mixer,
        ratio=candidate.ratio,
        placement="" if candidate.is_baseline or candidate.is_pure else candidate.placement,
        pattern=candidate.arch.pattern.letters,
        decided_by=found.decided_by,
        because=found.reasons[0].text,
        basis=found.winner.cost.basis.label,
    )


def _layers(found: Recommendation) -> tuple[Layer, ...]:
    from planner.mixers import get_mixer

    if found.winner is None:
        return ()
    arch = found.winner.candidate.arch
    specs = dict(arch.mixer_layers())
    return tuple(
        Layer(
            index=i,
            letter=get_mixer(specs[i].mixer).letter if i in specs else letter,
            mixer=specs[i].mixer if i in specs else "",
            title=get_mixer(specs[i].mixer).title if i in specs else "no mixer",
            dimensions=specs[i].short() if i in specs else "",
        )
        for i, letter in enumerate(arch.pattern.letters)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    return value
