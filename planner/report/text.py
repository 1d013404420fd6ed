"""A recommendation on the terminal: the answer, why, the alternatives, what was rejected."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from planner.decision.explain import basis_text, score_text, session_text
from planner.decision.recommendation import Evaluated, Recommendation
from planner.units import bytes_text, seconds_text
from planner.workload import format_tokens


def print_recommendation(found: Recommendation, console: Console) -> None:
    case, traffic = found.use_case, found.use_case.traffic
    console.print(
        f"[bold]{escape(case.title)}[/bold]: {found.intent} on {escape(found.model.name)}, "
        f"{escape(found.hardware_name)}; prompt {format_tokens(traffic.prompt_tokens)}, output "
        f"{format_tokens(traffic.output_tokens)}, {traffic.concurrency} at once"
    )
    if found.winner is None:
        console.print("[bold red]Nothing meets the limits.[/bold red]")
    else:
        console.print(
            f"\n[bold green]{escape(found.winner.candidate.label)}[/bold green] "
            f"(decided by {found.decided_by})"
        )
    for reason in found.reasons:
        console.print(f"  [dim]{reason.kind:9}[/dim] {escape(reason.text)}")
        console.print(
            f"            [dim]basis: {escape(reason.basis)}; source: "
            f"{escape(reason.source)}[/dim]"
        )
    if found.runner_up is not None:
        console.print(
            f"\nrunner-up: [bold]{escape(found.runner_up.candidate.label)}[/bold]; "
            f"{escape(score_text(found.runner_up))}; cost "
            f"{found.runner_up.cost_text} ({basis_text(found.runner_up.cost)})"
        )
    console.print()
    console.print(candidates_table(found))
    for line in rejected_lines(found):
        console.print(f"  [dim]rejected[/dim] {escape(line)}")
    for note in found.notes:
        console.print(f"note: {escape(note)}")
    if found.winner is not None:
        console.print(f"note: {escape(session_text(found.winner))}")


def designs(found: Recommendation) -> list[Evaluated]:
    """One candidate per mixer and ratio: the uniform one stands for the other placements."""
    return [e for e in found.evaluated if e.candidate.placement == "uniform"]


def rejected_lines(found: Recommendation) -> list[str]:
    """For each constraint: how many designs it rejects, and what the first of them reaches."""
    lines = []
    for constraint in found.rejected_by():
        broken = [(e, v) for e in designs(found) for v in e.broken if v.constraint == constraint]
        if broken:
            names = ", ".join(e.candidate.label for e, _ in broken[:4])
            more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
            lines.append(f"by {constraint}: {names}{more}; {broken[0][1].text}")
    return lines


def candidates_table(found: Recommendation) -> Table:
    table = Table(box=None, pad_edge=False, title="designs, cheapest first", title_justify="left")
    for name in (
        "design",
        "cost",
        "TTFT",
        "TPOT, batch",
        "KV+state/seq",
        "fit",
        "accuracy kept (80 %)",
        "evidence",
        "basis",
        "",
    ):
        table.add_column(
            name,
            justify="left" if name in ("design", "evidence", "basis", "") else "right",
            no_wrap=True,
        )
    for e in sorted(designs(found), key=lambda e: e.cost_order):
        q = e.quality
        kept = (
            f"{100 * q.median:.1f} % ({100 * q.low:.0f} to {100 * q.high:.0f})"
            if q.covered
            else "not covered"
        )
        mark = (
            "◀ chosen"
            if e is found.winner
            else ("" if e.feasible else "✗ " + ",".join(v.constraint for v in e.broken))
        )
        table.add_row(
            escape(e.candidate.label),
            e.cost_text,
            seconds_text(e.cost.ttft_s),
            f"{seconds_text(e.cost.tpot_s)}, {e.cost.batch_size}"
            if e.cost.batch_size
            else "does not fit",
            bytes_text(e.cost.memory.per_sequence),
            str(e.cost.max_concurrency),
            kept,
            q.strength,
            e.cost.basis.label,
            mark,
        )
    return table
