"""`attn-plan evidence import`: your own accuracy results into the store.

    attn-plan evidence import results.json --name mine --config hybrid/config.json \
        --control full.json --control-config full/config.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.options import JsonOption, StoreOption, emit_json, say
from planner.errors import UsageError
from planner.workload import format_tokens, parse_tokens

if TYPE_CHECKING:
    from planner.architecture import Architecture
    from planner.formats.evidence_import import EvaluatedModel, Imported
    from planner.formats.scores import ScoreFile
    from planner.quality.imported import Effect
    from planner.quality.retention import Retention


class Origin(StrEnum):
    SCRATCH = "scratch"
    CONVERTED = "converted"


def import_results(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="lm-evaluation-harness JSON, RULER summary.csv, HELMET JSON, Inspect log, or a "
            "CSV with columns task, value.",
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="What the store calls this source.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="The model's config.json, or its folder.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Instead: a model of the catalog.")
    ] = None,
    ratio: Annotated[
        str | None, typer.Option("--ratio", help="With its layers mixed so, such as 3:1.")
    ] = None,
    mixer: Annotated[
        str, typer.Option("--mixer", help="The linear mixer of --ratio.")
    ] = "gated_deltanet",
    placement: Annotated[
        str, typer.Option("--placement", help="Where --ratio puts the full layers.")
    ] = "uniform",
    origin: Annotated[
        Origin, typer.Option("--origin", help="Trained from scratch, or converted.")
    ] = Origin.SCRATCH,
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
            help="Context of the results where a file does not say it: once, or once a file.",
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
    train_tokens: Annotated[
        float | None, typer.Option("--train-tokens", help="Tokens trained on, in 10⁹.")
    ] = None,
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

    arch = _architecture(config, model, "--config", "--model")
    if ratio is not None:
        from planner.architecture import parse_placement

        arch = arch.with_mixer(mixer, ratio, placement=parse_placement(placement))
    arch = replace(arch, origin=origin.value)
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
            _architecture(control_config, control_model, "--control-config", "--control-model")
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


def _architecture(
    config: Path | None, model: str | None, config_option: str, model_option: str
) -> Architecture:
    if (config is None) == (model is None):
        raise UsageError(
            f"the architecture comes from {config_option} (a config.json) or {model_option} (a "
            f"model of the catalog): give one of the two"
        )
    if config is not None:
        from planner.formats.huggingface import read_config

        return read_config(config)
    from planner.catalog import load_model

    return load_model(str(model))


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
        where = f" at {format_tokens(e.context)}" if e.context else ""
        lines.append(
            f"  {e.task_class}: {e.points:+.1f} points over {e.rows} numbers; accuracy "
            f"kept{where} {_kept(e.before)} before, {_kept(e.after)} now"
        )
    return lines


def _kept(found: Retention) -> str:
    if not found.covered:
        return "not covered"
    return (
        f"{100 * found.retention_median:.0f} % ({100 * found.retention_low:.0f} to "
        f"{100 * found.retention_high:.0f}, {found.strength})"
    )


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
        "effects": [
            {**asdict(e), "before": _answer(e.before), "after": _answer(e.after)} for e in effects
        ],
    }


def _answer(found: Retention) -> dict[str, Any] | None:
    """Accuracy kept as a share of the control's, with its 80 % interval."""
    if not found.covered:
        return None
    return {
        "retention": found.retention_median,
        "low": found.retention_low,
        "high": found.retention_high,
        "points": found.points_median,
        "level": found.level,
        "strength": found.strength,
        "sources": list(found.sources),
        "own_sources": list(found.own_sources),
    }
