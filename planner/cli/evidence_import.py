"""`attn-plan evidence import`: your own accuracy results into the store.

    attn-plan evidence import results.json --name mine --config hybrid/config.json \
        --control full.json --control-config full/config.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.evidence_predict import answer, kept
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
from planner.cli.options import JsonOption, StoreOption, emit_json, say
from planner.errors import UsageError
from planner.workload import format_tokens, parse_tokens

if TYPE_CHECKING:
    from planner.architecture import Architecture
    from planner.formats.evidence_import import EvaluatedModel, Imported
    from planner.formats.scores import ScoreFile
    from planner.quality.imported import Effect


def import_results(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="lm-evaluation-harness JSON, RULER summary.csv, HELMET JSON, Inspect log, or a "
            "CSV with columns task, value and where known task_class, eval_length.",
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="What the store calls this source.")],
    config: ConfigOption = None,
    model: CatalogOption = None,
    ratio: RatioOption = None,
    mixer: MixerOption = "gated_deltanet",
    placement: PlacementOption = "uniform",
    origin: OriginOption = Origin.SCRATCH,
    control: Annotated[
        list[Path] | None,
        typer.Option("--control", help="Results of full attention trained by the same recipe."),
    ] = None,
    control_config: Annotated[
        Path | None, typer.Option("--control-config", help="The control's config.json.")
    ] = None,
    control_model: Annotated[
        str | None,
        typer.Option(
            "--control-model",
            help="Instead: a model of the catalog. Default: the model with full attention in "
            "every layer.",
        ),
    ] = None,
    length: Annotated[
        list[str] | None,
        typer.Option(
            "--length",
            help="Context of the scores whose own is not in the file: once, or once a file.",
        ),
    ] = None,
    task_class: Annotated[
        list[str] | None,
        typer.Option(
            "--task-class",
            help="TASK=CLASS for a task not known by name; retrieval, icl, multi_hop, "
            "summarization or general.",
        ),
    ] = None,
    percent: Annotated[
        bool, typer.Option("--percent", help="Inspect scores are percent, not fractions.")
    ] = False,
    format: Annotated[
        str | None, typer.Option("--format", help="lm_eval, ruler, helmet, inspect or csv.")
    ] = None,
    train_length: Annotated[
        str | None, typer.Option("--train-length", help="Trained at; default: config.json's.")
    ] = None,
    train_tokens: TrainTokensOption = None,
    control_train_tokens: Annotated[
        float | None,
        typer.Option("--control-train-tokens", help="Of the control; default: the same."),
    ] = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Puts accuracy results of your own model into the store: its own source.

    With --control they are compared and outweigh published evidence; without one they only say
    an absolute level.
    """
    from planner.formats.evidence_import import EvaluatedModel, import_evidence
    from planner.formats.results import read_scores
    from planner.quality.imported import effect_of
    from planner.store import Store

    if not control and (control_config or control_model or control_train_tokens):
        raise UsageError("--control-… describes the control's results: give them with --control")
    lengths = [parse_tokens(text) for text in length or ()]
    classes = dict(_assignment(text) for text in task_class or ())

    def read(paths: Sequence[Path]) -> tuple[ScoreFile, ...]:
        return tuple(
            read_scores(path, format=format, length=at, is_percent=percent, classes=classes)
            for path, at in zip(paths, _per_file(lengths, len(paths)), strict=True)
        )

    arch = mixed(one_of(config, model), ratio, mixer, placement, origin)
    trained = parse_tokens(train_length) if train_length else None
    mine = EvaluatedModel(
        architecture=arch,
        files=read(results),
        params_b=_params_b(arch),
        train_tokens_b=train_tokens,
        train_length=trained,
    )
    full: EvaluatedModel | None = None
    if control:
        control_arch = (
            one_of(control_config, control_model, ("--control-config", "--control-model"))
            if control_config or control_model
            else arch.with_mixer("full_attention", "0:1", name=f"{arch.name}, full attention")
        )
        full = EvaluatedModel(
            architecture=control_arch,
            files=read(control),
            params_b=_params_b(control_arch) if control_config or control_model else None,
            train_tokens_b=train_tokens if control_train_tokens is None else control_train_tokens,
            train_length=trained,
        )
    opened = Store.open(store)
    found = import_evidence(opened, name, mine, control=full)
    effects = effect_of(opened.comparisons(), name, arch)
    if as_json:
        emit_json(_document(name, mine, full, found, effects))
        return
    for line in _lines(name, mine, full, found, effects):
        print(line)
    for skipped in found.skipped:
        say(f"not fitted: {skipped}")


def _params_b(arch: Architecture) -> float:
    """10⁹ weights, by formula."""
    return arch.parameters() / 1e9


def _assignment(text: str) -> tuple[str, str]:
    task, equals, task_class = text.rpartition("=")
    if not (task and equals and task_class):
        raise UsageError(
            f"--task-class must be TASK=CLASS, such as clauses=retrieval, got {text!r}"
        )
    return task, task_class


def _per_file(lengths: Sequence[int], count: int) -> list[int | None]:
    if len(lengths) <= 1:
        return [lengths[0] if lengths else None] * count
    if len(lengths) != count:
        raise UsageError(
            f"--length must be given once, or once for each of the {count} files, got "
            f"{len(lengths)}"
        )
    return list(lengths)


# What is said


def _lines(
    name: str,
    mine: EvaluatedModel,
    full: EvaluatedModel | None,
    found: Imported,
    effects: Sequence[Effect],
) -> list[str]:
    formats = ", ".join(dict.fromkeys(file.format for file in mine.files))
    arch = mine.architecture
    lines = [
        f"imported {name!r}: {found.num_rows} numbers ({formats}) of {arch.describe()}, "
        f"{arch.origin}"
    ]
    if found.num_replaced:
        lines.append(
            f"in place of {found.num_replaced} numbers of other results under this name; a name "
            "for each model keeps both"
        )
    if full is None:
        lines.append(
            "an absolute level only: without --control nothing says what full attention of the "
            "same recipe reaches, so predictions of accuracy kept stay as they were"
        )
    elif found.is_absolute_only:
        lines.append("an absolute level only: no number could be compared with the control's")
    else:
        lines.append(
            f"compared with {full.architecture.describe()} of the same recipe: "
            f"{found.num_compared} numbers, fitted as your own source"
        )
    for e in effects:
        where = f" at {format_tokens(e.context)}" if e.context else " at an unknown length"
        lines.append(
            f"  {e.task_class}: {e.points:+.1f} points over {e.rows} numbers; accuracy "
            f"kept{where} {kept(e.before)} before, {kept(e.after)} now ({e.after.strength} "
            f"evidence: {e.after.num_rows} rows, {e.after.num_sources} sources)"
        )
    return lines


def _document(
    name: str,
    mine: EvaluatedModel,
    full: EvaluatedModel | None,
    found: Imported,
    effects: Sequence[Effect],
) -> dict[str, Any]:
    return {
        "name": name,
        "architecture": mine.architecture.describe(),
        "control": full.architecture.describe() if full else None,
        "files": [
            {"file": file.path.name, "format": file.format, "sha256": file.sha256}
            for model in (mine, full)
            if model
            for file in model.files
        ],
        "numbers": found.num_rows,
        "compared": found.num_compared,
        "absolute_only": found.is_absolute_only,
        "not_fitted": list(found.skipped),
        "replaced": found.num_replaced,
        "effects": [
            {**asdict(e), "before": answer(e.before), "after": answer(e.after)} for e in effects
        ],
    }
