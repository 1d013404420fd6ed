"""`attn-plan evidence …`: what is known of accuracy."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from planner.cli.options import JsonOption, StoreOption, emit_json

app = typer.Typer(no_args_is_help=True, help="Accuracy evidence in the store.")


@app.command("list")
def evidence_list(
    as_json: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="All controlled comparisons as CSV.")] = False,
    store: StoreOption = None,
) -> None:
    """The sources of accuracy evidence and how many rows each contributes."""
    from planner.report.csv import safe_csv
    from planner.store import Store

    opened = Store.open(store)
    comparisons, sources = opened.comparisons(), opened.sources()
    if csv:
        sys.stdout.write(safe_csv(comparisons))
        return
    counts = comparisons.groupby("source").size()
    rows = [
        {"source": key, "title": title, "comparisons": int(counts.get(key, 0))}
        for key, title in zip(sources["key"], sources["title"], strict=True)
    ]
    if as_json:
        emit_json(rows)
        return
    for row in rows:
        print(f"{row['comparisons']:5}  {row['source']:24} {row['title']}")
