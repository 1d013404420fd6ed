"""Which model a command is about: its config.json, or one of the catalog, mixed as asked."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.options import say
from planner.errors import UsageError

if TYPE_CHECKING:
    from planner.architecture import Architecture


class Origin(StrEnum):
    SCRATCH = "scratch"
    CONVERTED = "converted"


ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="The model's config.json, or its folder.")
]
CatalogOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Instead: a model of the catalog.")
]
RatioOption = Annotated[
    str | None, typer.Option("--ratio", help="With its layers mixed so, such as 3:1.")
]
MixerOption = Annotated[str, typer.Option("--mixer", help="The linear mixer of --ratio.")]
PlacementOption = Annotated[
    str, typer.Option("--placement", help="Where --ratio puts the full layers.")
]
OriginOption = Annotated[
    Origin, typer.Option("--origin", help="Trained from scratch, or converted.")
]
TrainTokensOption = Annotated[
    float | None, typer.Option("--train-tokens", min=1e-6, help="Tokens trained on, in 10⁹.")
]


def named(model: str, weights: str | None = None) -> Architecture:
    """A model of the catalog, or the one in a config.json; with a note where that keeps quantised
    weights and nobody said which `weights` to count with."""
    from planner.catalog import load_model
    from planner.formats.huggingface import is_path, read_config, stored_weights

    if not is_path(model):
        return load_model(model)
    method = stored_weights(Path(model)) if weights is None else None
    if method is not None:
        say(
            f"note: {model} stores quantised weights ({method}); they count as unquantised unless "
            f"--weights says otherwise"
        )
    return read_config(Path(model))


def one_of(
    config: Path | None, model: str | None, options: tuple[str, str] = ("--config", "--model")
) -> Architecture:
    """The architecture in a config.json or of a catalog model. Raises UsageError unless one of
    the two is given."""
    if (config is None) == (model is None):
        raise UsageError(
            f"the architecture comes from {options[0]} (a config.json) or {options[1]} (a model "
            f"of the catalog): give one of the two"
        )
    if config is not None:
        from planner.formats.huggingface import read_config

        return read_config(config)
    from planner.catalog import load_model

    return load_model(str(model))


def mixed(
    arch: Architecture, ratio: str | None, mixer: str, placement: str, origin: Origin
) -> Architecture:
    """The model as it is, or with its layers mixed as asked."""
    if ratio is not None:
        from planner.architecture import parse_placement

        arch = arch.with_mixer(mixer, ratio, placement=parse_placement(placement))
    return replace(arch, origin=origin.value)
