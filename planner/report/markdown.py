"""The report as Markdown: for a pull request, a wiki or a terminal.

Texts are escaped, so that a name with markup in it shows as it is written and a table cell cannot
break its row.

    >>> escape("a|b *c* <d>")
    'a\\\\|b \\\\*c\\\\* \\\\<d>'
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from planner.units import bytes_text, percent, seconds_text

if TYPE_CHECKING:
    from planner.report.designs import Design
    from planner.report.model import ReportModel

_SPECIAL = re.compile(r"[\\`*\[\]<|~]|(?<!\w)_|_(?!\w)|^(?=[#>+-] )|(?<=^\d)\.(?= )")


def escape(text: str) -> str:
    """`text` as CommonMark that shows it literally, on one line."""
    return _SPECIAL.sub(lambda m: "\\" + m[0], " ".join(text.split()))


def code(text: str) -> str:
    """`text` as a code span that nothing in it can end: the fence is longer than any inside."""
    line = " ".join(text.split())
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}" if longest else f"`{line}`"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A pipe table of escaped cells; a column whose name starts with ">" is right-aligned."""
    names = [name.removeprefix(">") for name in header]
    rule = ["---:" if name.startswith(">") else "---" for name in header]
    body = [[escape(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in [names, rule, *body]]


def render(model: ReportModel) -> str:
    sections = (
        _head, _figures, _reasons, _runner_up, _limits, _designs, _notes, _inputs,
        _assumptions, _provenance, _evidence, _foot,
    )  # fmt: skip
    lines = [line for section in sections for line in section(model)]
    return "\n".join(lines).rstrip() + "\n"


def _head(m: ReportModel) -> Iterator[str]:
    kind = "a new model" if m.intent == "build" else "an existing model"
    yield from (f"# {escape(m.question)}", "")
    yield from (escape(f"{m.title}, {kind}, {m.model}, {m.hardware}"), "")
    if m.answer is None:
        yield from ("**Nothing meets the limits.**", "")
        return
    yield from (f"**{escape(m.answer.label)}**", "")
    because = f"{m.answer.because}. Decided by {m.answer.decided_by}; cost {m.answer.basis}."
    yield from (escape(because), "")
    yield from (f"Layers: {code(m.answer.pattern)}", "")


def _figures(m: ReportModel) -> Iterator[str]:
    if m.provenance.advice:
        yield from (
            f"> {escape(m.provenance.advice)}",
            f"> {code(m.provenance.profile_command)}",
            "",
        )
    if m.figures:
        header = ("Figure", ">Value", "Interval or condition", "Against", "Basis")
        rows = ((f.label, f.text, f.interval, f.baseline, f.basis) for f in m.figures)
        yield from (*table(header, rows), "")


def _reasons(m: ReportModel) -> Iterator[str]:
    yield from ("## Why" if m.answer else "## What stands in the way", "")
    for r in m.reasons:
        basis = escape(f"basis: {r.basis}; source: {r.source}")
        yield f"- **{r.kind}**: {escape(r.text)}  \n  {basis}"
    yield ""


def _runner_up(m: ReportModel) -> Iterator[str]:
    if m.runner_up is None:
        return
    d = m.runner_up
    yield from ("## Runner-up", "")
    text = (
        f"{d.label}: {d.cost_phrase}, accuracy kept "
        f"{_percent(d.accuracy_kept)} (80 %: {_percent(d.accuracy_low)} to "
        f"{_percent(d.accuracy_high)}), TTFT {seconds_text(d.ttft_s)}, TPOT "
        f"{seconds_text(d.tpot_s)}."
    )
    yield from (escape(text), "")


def _limits(m: ReportModel) -> Iterator[str]:
    if not m.limits:
        return
    yield from ("## Rejected, by limit", "")
    header = ("Limit", ">Rejects", ">For this alone", "Nearest", "To let one more pass")
    rows = (
        (
            x.title,
            f"{x.rejects} of {x.designs}",
            str(x.rejects_alone),
            f"{x.nearest}: {x.nearest_text}",
            x.relax_text or "–",
        )
        for x in m.limits
    )
    yield from (*table(header, rows), "")


def _designs(m: ReportModel) -> Iterator[str]:
    yield from ("## All designs", "")
    header = (
        "Design", ">Cost", ">80 %", ">Kept", ">80 %", ">TTFT", ">TPOT", ">Session", ">Fit",
        "Evidence", "Basis", "Verdict",
    )  # fmt: skip
    yield from (*table(header, (_design_row(d) for d in m.designs)), "")


def _design_row(d: Design) -> tuple[str, ...]:
    return (
        d.label,
        d.cost_text,
        d.cost_interval,
        _percent(d.accuracy_kept),
        f"{_percent(d.accuracy_low)} to {_percent(d.accuracy_high)}",
        seconds_text(d.ttft_s),
        seconds_text(d.tpot_s),
        bytes_text(d.session_bytes),
        f"{d.max_concurrency:,}",
        d.evidence_text,
        d.cost_basis,
        d.verdict,
    )


def _notes(m: ReportModel) -> Iterator[str]:
    if m.notes:
        yield from ("## Notes", "", *(f"- {escape(note)}" for note in m.notes), "")


def _inputs(m: ReportModel) -> Iterator[str]:
    yield from ("## Inputs", "")
    yield from table(("Input", "Value", "From"), ((x.name, x.value, x.source) for x in m.inputs))
    yield ""
    if m.command:
        yield from (f"Ask again: {code(m.command)}", "")


def _assumptions(m: ReportModel) -> Iterator[str]:
    yield from ("## Assumptions", "", *(f"- {escape(text)}" for text in m.assumptions), "")


def _provenance(m: ReportModel) -> Iterator[str]:
    p = m.provenance
    yield from ("## Provenance", "")
    read = f", read {p.hardware_read_on}" if p.hardware_read_on else ""
    source = f"{p.hardware}: peaks and bandwidth, {p.hardware_basis} ({p.hardware_source}{read})"
    yield from (escape(source), "")
    if p.measured_points is not None:
        newest = f", newest {p.measured_on}" if p.measured_on else ""
        counts = f"{p.measured_points:,} points measured{newest}; {p.imported_points:,} imported"
        yield from (counts + ".", "")
    if p.environment:
        yield from (*table(("Environment", "Value"), p.environment.items()), "")


def _evidence(m: ReportModel) -> Iterator[str]:
    if m.sources:
        yield from ("## Evidence behind the accuracy", "")
        header = ("Source", "Title", "Tier", ">Rows", "Where")
        rows = ((s.key, s.title, s.tier, str(s.rows), s.url or s.reference) for s in m.sources)
        yield from (*table(header, rows), "")


def _foot(m: ReportModel) -> Iterator[str]:
    made = f"attention-planner {m.tool_version}, report format {m.format_version}, {m.created_at}"
    yield from ("---", "", made)
    if m.link:
        yield f"Scenario: {escape(m.link)}"


def _percent(share: float) -> str:
    """To a tenth, which is finer than any evidence."""
    return percent(round(share, 3)) if share == share else "n/a"
