"""lm-evaluation-harness results: `results_<date>.json`.

Metrics are fractions under "<metric>,<filter>". RULER's tasks have the length as the metric's
name, "4096,none", and -1 where a length was not run. Source: the harness at 4e7e0d4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from planner.errors import UsageError
from planner.formats.foreign import mapping, number, percent, text, whole
from planner.formats.scores import Score, task_facts

NAME = "lm_eval"

NOT_RUN = -1.0
FRACTIONS = ("acc_norm", "acc", "exact_match", "em", "contains", "score", "f1", "pass@1")
"""Preferred first: one metric of a task is kept."""
OTHER_SCALES = {"bits_per_byte": "bits_per_byte", "word_perplexity": "perplexity",
                "perplexity": "perplexity"}  # fmt: skip
FILTERS = ("none", "strict-match")


def is_mine(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and isinstance(data.get("results"), dict)
        and any(
            key in data
            for key in ("n-shot", "configs", "lm_eval_version", "task_hashes", "versions")
        )
    )


def parse(data: Mapping[str, Any], name: str) -> tuple[str, list[Score]]:
    """(model, scores). Of a group and its parts the parts are kept where lengths are metrics,
    the group elsewhere."""
    results = mapping(data, "results", name)
    shots = data.get("n-shot") if isinstance(data.get("n-shot"), dict) else {}
    samples = data.get("n-samples") if isinstance(data.get("n-samples"), dict) else {}
    skipped = _parts_of_groups(data, results)
    scores: list[Score] = []
    for task, metrics in results.items():
        task_name = text(task, "a task's name", name)
        where = f"{name}: results.{task_name}"
        if not isinstance(metrics, dict):
            raise UsageError(f"{where} must be an object")
        if task in skipped:
            continue
        k_shot = whole((shots or {}).get(task), f"n-shot.{task_name}", name)
        counted = (samples or {}).get(task)
        effective = counted.get("effective") if isinstance(counted, dict) else None
        for score in _of_task(task_name, metrics, where):
            scores.append(
                Score(
                    **{
                        **vars(score),
                        "k_shot": k_shot,
                        "num_samples": whole(effective, f"n-samples.{task_name}", name),
                    }
                )
            )
    return _model(data), scores


def _of_task(task: str, metrics: Mapping[str, Any], where: str) -> Iterator[Score]:
    facts = task_facts(task)
    found = dict(_metrics(metrics))
    common = {
        "task": task,
        "task_class": facts.task_class,
        "subclass": facts.subclass,
        "chance": facts.chance,
    }
    lengths = {m: v for m, v in found.items() if m.isdecimal() and len(m) <= 9}
    for metric, value in sorted(lengths.items(), key=lambda item: int(item[0])):
        if number(value, metric, where) == NOT_RUN:
            continue
        yield Score(
            **common,  # type: ignore[arg-type]
            metric="accuracy",
            value=percent(value, metric, where, fraction=True),
            eval_length=max(int(metric), 1),
        )
    if lengths:
        return
    for metric in FRACTIONS:
        if metric in found:
            yield Score(
                **common,  # type: ignore[arg-type]
                metric="score" if metric == "f1" else "accuracy",
                measure=metric,
                value=percent(found[metric], metric, where, fraction=True),
            )
            return
    for metric, scale in OTHER_SCALES.items():
        if metric in found:
            value = number(found[metric], metric, where)
            if value < (1.0 if scale == "perplexity" else 0.0):
                raise UsageError(f"{where}: {metric} is out of range, got {value}")
            yield Score(**{**common, "chance": None}, metric=scale, value=value)  # type: ignore[arg-type]
            return


def _metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(metric, value) of the preferred filter; standard errors, aliases and words left out."""
    by_filter: dict[str, dict[str, Any]] = {}
    for key, value in metrics.items():
        metric, _, chosen = str(key).partition(",")
        if metric.endswith("_stderr") or metric in ("alias", "sample_len", "name"):
            continue
        by_filter.setdefault(metric, {})[chosen or "none"] = value
    for metric, values in by_filter.items():
        preferred = [f for f in FILTERS if f in values] or sorted(values)
        yield metric, values[preferred[0]]


def _parts_of_groups(data: Mapping[str, Any], results: Mapping[str, Any]) -> set[str]:
    """Tasks to leave out: parts of a kept group, or groups whose parts are kept."""
    groups = data.get("group_subtasks")
    skipped: set[str] = set()
    if not isinstance(groups, dict):
        return skipped
    for group, parts in groups.items():
        if not isinstance(parts, list) or not parts or group not in results:
            continue
        present = [p for p in parts if isinstance(p, str) and p in results]
        by_length = any(
            str(key).partition(",")[0].isdecimal()
            for p in present
            if isinstance(results[p], dict)
            for key in results[p]
        )
        skipped.update([group] if by_length else present)
    return skipped


def _model(data: Mapping[str, Any]) -> str:
    config = data.get("config")
    candidates = [data.get("model_name")]
    if isinstance(config, dict):
        candidates += [config.get("model_name"), config.get("model_args"), config.get("model")]
    return next((c for c in candidates if isinstance(c, str) and c.strip()), "")
