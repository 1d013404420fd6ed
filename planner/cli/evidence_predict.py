"""`attn-plan evidence predict`: what the evidence says of one architecture, class by class."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.model_options import (
    CatalogOption,
    ConfigOption,
    MixerOption,
    Origin,
    OriginOption,
    PlacementOption,
    RatioOption,
    TrainTokensOption,
    mixed,
    one_of,
)
from planner.cli.options import JsonOption, StoreOption, emit_json
from planner.workload import format_tokens, parse_tokens

if TYPE_CHECKING:
    from planner.quality.retention import Retention


def predict(
    config: ConfigOption = None,
    model: CatalogOption = None,
    ratio: RatioOption = None,
    mixer: MixerOption = "gated_deltanet",
    placement: PlacementOption = "uniform",
    origin: OriginOption = Origin.SCRATCH,
    context: Annotated[str, typer.Option("--context", help="Tokens of input.")] = "32k",
    train_tokens: TrainTokensOption = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Accuracy kept against full attention of the same recipe, by class of tasks: points with
    their 80 % interval, how strong the evidence is, and which rows carry it."""
    from planner.quality.features import MixFeatures
    from planner.quality.retention import QualityModel
    from planner.store import Store
    from planner.store.evidence_rules import TASK_CLASSES

    arch = mixed(one_of(config, model), ratio, mixer, placement, origin)
    tokens = parse_tokens(context)
    asked = replace(MixFeatures.of(arch), train_tokens_b=train_tokens)
    fitted = QualityModel.fit(Store.open(store).comparisons())
    found = [fitted.predict(asked, name, tokens) for name in TASK_CLASSES]
    if as_json:
        emit_json(
            {
                "architecture": arch.describe(),
                "origin": arch.origin,
                "context_tokens": tokens,
                "classes": {r.task_class: answer(r) for r in found},
            }
        )
        return
    print(f"{arch.describe()}, {arch.origin}, at {format_tokens(tokens)}: against full attention")
    for r in found:
        print("\n".join(lines(r)))


def lines(found: Retention) -> list[str]:
    """Points first, then what carries them."""
    notes = [f"    {note}" for note in found.notes]
    if not found.covered:
        return [f"  {found.task_class}: not covered", *notes]
    return [
        f"  {found.task_class}: {found.points_median:+.1f} points, 80 %: "
        f"{found.points_low:+.1f} to {found.points_high:+.1f}; keeps {kept(found)}",
        f"    {found.strength} evidence by {found.level}: {found.num_rows} rows, "
        f"{found.num_sources} sources{'; ' + found.nearest if found.nearest else ''}",
        *notes,
    ]


def kept(found: Retention) -> str:
    """Accuracy kept with its 80 % interval: "98 % (90 to 104 %)"."""
    if not found.covered:
        return "not covered"
    return (
        f"{100 * found.retention_median:.0f} % ({100 * found.retention_low:.0f} to "
        f"{100 * found.retention_high:.0f} %)"
    )


def answer(found: Retention) -> dict[str, Any] | None:
    """Points, and accuracy kept as a share of the control's; None if not covered."""
    if not found.covered:
        return None
    return {
        "points": found.points_median,
        "points_low": found.points_low,
        "points_high": found.points_high,
        "retention": found.retention_median,
        "low": found.retention_low,
        "high": found.retention_high,
        "level": found.level,
        "strength": found.strength,
        "rows": found.num_rows,
        "sources": list(found.sources),
        "own_sources": list(found.own_sources),
        "row_ids": list(found.row_ids),
        "nearest": found.nearest,
        "notes": list(found.notes),
    }
