"""`attn-plan db …`: the store."""

from __future__ import annotations

import typer

from planner import __version__
from planner.cli.options import JsonOption, StoreOption, emit_json

app = typer.Typer(no_args_is_help=True, help="The store: where it is and what it holds.")


@app.callback()
def _group() -> None:
    """Keeps `db` a group while it has one command."""


@app.command("info")
def db_info(as_json: JsonOption = False, store: StoreOption = None) -> None:
    """Where the store is, its schema, and the data sets in it."""
    from planner.store import Store
    from planner.store.schema import SCHEMA_VERSION

    opened = Store.open(store)
    facts = {
        "store": opened.engine.url.render_as_string(hide_password=True),
        "schema_version": SCHEMA_VERSION,
        "tool_version": __version__,
        "datasets": {**{n: d.rows for n, d in opened.datasets().items()}, **opened.point_counts()},
        "environments": len(opened.environments()),
        "runs": len(opened.runs()),
    }
    if as_json:
        emit_json(facts)
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            for name, rows in value.items():
                print(f"{'  ' + name:44}{rows:>8} rows")
        else:
            print(f"{key:18}{value}")
