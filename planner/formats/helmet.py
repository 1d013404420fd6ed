"""HELMET outputs: `<dataset>_<tag>_<test>_in<length>_…_shots<s>_….json`, or its `.score`.

`averaged_metrics` is percent already, except lengths (`…_len`). The dataset, the length and the
shots stand in the file's name. Source: princeton-nlp/HELMET, scripts/collect_results.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from planner.errors import UsageError
from planner.formats.foreign import percent, text
from planner.formats.scores import Score, task_facts

NAME = "helmet"

PREFERRED = (
    "gpt-4-f1", "gpt-4-score", "substring_exact_match", "ruler_recall", "exact_match", "NDCG@10",
    "str_em", "f1", "rougeLsum_f1", "rougeL_f1", "rougeL_recall",
)  # fmt: skip
"""The metric that HELMET itself reports for a dataset comes first."""

_LENGTH = re.compile(r"_in(\d{1,9})(?=_|\.)")
_SHOTS = re.compile(r"_shots?(\d{1,4})(?=_|\.)")
_SIZE = re.compile(r"_size(\d{1,9})(?=_|\.)")


def is_mine(data: Any, name: str) -> bool:
    if not isinstance(data, dict):
        return False
    if isinstance(data.get("averaged_metrics"), dict):
        return True
    return name.endswith(".score") and any(key in data for key in PREFERRED)


def parse(data: Mapping[str, Any], name: str, *, length: int | None) -> tuple[str, list[Score]]:
    """(model, scores): one score, the metric that HELMET reports for the dataset."""
    metrics = data.get("averaged_metrics", data)
    if not isinstance(metrics, dict):
        raise UsageError(f"{name}: averaged_metrics must be an object")
    found = _LENGTH.search(name)
    tokens = int(found[1]) if found else length
    if tokens is None or tokens < 1:
        raise UsageError(f"{name} has no _in<length>_ in its name; give the length with --length")
    dataset = text(name.split("_in")[0].removesuffix(".json"), "the dataset in the name", name)
    task = next((t for t in _shorter(dataset) if task_facts(t).task_class), dataset)
    metric = next((m for m in PREFERRED if m in metrics), None)
    if metric is None:
        raise UsageError(f"{name}: none of the metrics {', '.join(PREFERRED)} is there")
    facts = task_facts(task)
    shots, size = _SHOTS.search(name), _SIZE.search(name)
    score = Score(
        task=task,
        task_class=facts.task_class,
        subclass=facts.subclass,
        chance=facts.chance,
        metric="accuracy" if "match" in metric or metric == "ruler_recall" else "score",
        value=percent(metrics[metric], metric, name, fraction=False),
        eval_length=tokens,
        k_shot=int(shots[1]) if shots else None,
        num_samples=int(size[1]) if size else None,
        measure=metric,
    )
    args = data.get("args")
    model = args.get("model_name_or_path") if isinstance(args, dict) else None
    return (model if isinstance(model, str) else ""), [score]


def _shorter(dataset: str) -> list[str]:
    """ "json_kv_v2_eval" as json_kv_v2_eval, json_kv_v2, json_kv, json."""
    words = dataset.split("_")
    return ["_".join(words[:n]) for n in range(len(words), 0, -1)]
