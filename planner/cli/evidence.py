"""`attn-plan evidence …`: what is known of accuracy, and your own results among it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.evidence_import import import_results
from planner.cli.evidence_predict import predict
from planner.cli.options import JsonOption, StoreOption, emit_json

if TYPE_CHECKING:
    from planner.quality.claims import Claim
    from planner.store import Store

app = typer.Typer(no_args_is_help=True, help="Accuracy evidence in the store.")
app.command("import")(import_results)
app.command("predict")(predict)


@app.command("list")
def evidence_list(
    as_json: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="All controlled comparisons as CSV.")] = False,
    store: StoreOption = None,
) -> None:
    """The sources of accuracy evidence, your own first, and how many rows each contributes."""
    from planner.report.csv import safe_csv
    from planner.store import Store

    opened = Store.open(store)
    if csv:
        sys.stdout.write(safe_csv(opened.comparisons()))
        return
    rows = source_rows(opened)
    if as_json:
        emit_json(rows)
        return
    print(f"{'numbers':>7} {'compared':>8} {'fitted':>6}  {'source':24} {'tier':16} title")
    for row in rows:
        print(
            f"{row['numbers']:7} {row['comparisons']:8} {row['fitted']:6}  {row['source']:24} "
            f"{row['tier']:16} {row['title']}"
        )


def source_rows(store: Store) -> list[dict[str, Any]]:
    """One line a source: numbers, comparisons, and those of them that are fitted."""
    comparisons, sources = store.comparisons(), store.sources()
    numbers = store.evidence().groupby("source").size()
    compared = comparisons.groupby("source").size()
    fitted = comparisons[comparisons["use"] != "show"].groupby("source").size()
    table: Any = sources.itertuples()
    rows = [
        {
            "source": row.key,
            "title": row.title,
            "tier": row.tier,
            "imported": row.tier == "imported",
            "numbers": int(numbers.get(row.key, 0)),
            "comparisons": int(compared.get(row.key, 0)),
            "fitted": int(fitted.get(row.key, 0)),
            "reference": row.source,
            "read_on": row.read_on,
        }
        for row in table
    ]
    return sorted(rows, key=lambda row: (not row["imported"], row["source"]))


@app.command("remove")
def evidence_remove(
    name: Annotated[str, typer.Argument(help="The name given at import.")],
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Takes an import of yours out of the store again; published evidence stays."""
    from planner.formats.evidence_import import remove_import
    from planner.store import Store

    numbers = remove_import(Store.open(store), name)
    if as_json:
        emit_json({"name": name, "numbers": numbers})
        return
    print(f"removed {name!r}: {numbers} numbers")


@app.command("claims")
def evidence_claims(as_json: JsonOption = False, store: StoreOption = None) -> None:
    """What the evidence says of the source article's claims: verdict, effect, rows and sources."""
    from planner.quality.claims import check_claims
    from planner.store import Store

    claims = check_claims(Store.open(store))
    if as_json:
        emit_json([asdict(claim) for claim in claims])
        return
    for claim in claims:
        print("\n".join(claim_lines(claim)))


def claim_lines(claim: Claim) -> list[str]:
    """The claim and its verdict; below it effect, caveat and what carries them."""
    rows = f"{len(claim.row_ids)} rows of " if claim.row_ids else ""
    return [
        f"{claim.verdict.upper()}: {claim.claim}",
        f"  {claim.effect}",
        f"  but: {claim.caveat}",
        f"  from: {rows}{', '.join(claim.sources) or 'nothing'}",
        "",
    ]
