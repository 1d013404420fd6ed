"""Scores: what a foreign results file says, in one shape; and reading such files with care.

A results file is somebody else's text. It is read whole before anything is stored, numbers have to
be numbers in range, names lose control characters, and what is not understood is an error that
names the file and the place.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import EnvironmentProblem, UsageError
from planner.store.evidence_rules import TASK_CLASSES

MAX_BYTES = 256 << 20
MAX_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of a results file. Percent metrics are 0 to 100 here whatever the file says.

    `task_class` is "" where the task's name does not tell it. `eval_length` is in tokens.
    """

    task: str
    metric: str
    value: float
    task_class: str = ""
    subclass: str = ""
    eval_length: int | None = None
    k_shot: int | None = None
    num_samples: int | None = None
    chance: float | None = None
    aggregate_of: str = ""


@dataclass(frozen=True, kw_only=True)
class ScoreFile:
    """A results file: its format, the model it names, its scores and its hash."""

    format: str
    model: str
    scores: tuple[Score, ...]
    sha256: str
    path: Path


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises EnvironmentProblem, or UsageError for an oversized file."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UsageError(
                f"{path.name} is {size >> 20} MiB, at most {MAX_BYTES >> 20} are read"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise EnvironmentProblem(f"{path} does not exist") from None
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {path}: {error.strerror}") from None


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def parse_json(content: bytes, name: str) -> Any:
    """JSON in UTF-8 with finite numbers and no key twice. Raises UsageError, naming the file."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_no_key_twice)
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{name} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply to be a results file") from None
    except ValueError as error:
        raise UsageError(f"{name} is not usable JSON: {str(error)[:MAX_NAME]}") from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {clean(twice)!r} stands twice in one object")
    return found


def mapping(data: Any, key: str, name: str) -> Mapping[str, Any]:
    """`data[key]`, which has to be an object."""
    found = data.get(key)
    if not isinstance(found, dict):
        raise UsageError(f"{name}: {key} must be an object, got {_kind(found)}")
    return found


def text(value: Any, what: str, name: str) -> str:
    """A name: non-empty text without control characters, at most 200 of them."""
    if not isinstance(value, str) or not clean(value):
        raise UsageError(f"{name}: {what} must be text, got {_kind(value)}")
    return clean(value)


def clean(value: str) -> str:
    """Printable characters only, blanks collapsed, at most 200."""
    printable = "".join(ch if ch.isprintable() else " " for ch in value)
    return re.sub(r" +", " ", printable).strip()[:MAX_NAME]


def number(value: Any, what: str, name: str) -> float:
    """A finite number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name}: {what} must be a number, got {_kind(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise UsageError(f"{name}: {what} must be a finite number, got {found}")
    return found


def percent(value: Any, what: str, name: str, *, fraction: bool) -> float:
    """A score as percent, from a fraction or from percent; out of range is an error."""
    found = number(value, what, name) * (100.0 if fraction else 1.0)
    if not -1e-6 <= found <= 100.0 + 1e-6:
        span = "0 and 1" if fraction else "0 and 100"
        raise UsageError(f"{name}: {what} must be between {span}, got {value!r:.40}")
    return min(max(found, 0.0), 100.0)


def whole(value: Any, what: str, name: str, low: int = 0) -> int | None:
    """A whole number of at least `low`, or None where the file has null or nothing."""
    if value is None:
        return None
    found = number(value, what, name)
    if found != int(found) or not low <= found < 1 << 40:
        raise UsageError(f"{name}: {what} must be a whole number, got {value!r:.40}")
    return int(found)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), f"{value!r:.40}")


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What a task's name tells."""

    task_class: str
    subclass: str = ""
    chance: float | None = None


_QA = "question_answering"
_TASKS: tuple[tuple[str, TaskFacts], ...] = tuple(
    (pattern, TaskFacts(task_class=task_class, subclass=subclass, chance=chance))
    for pattern, task_class, subclass, chance in (
        (r"(ruler_)?niah_single.*|s-?niah.*|passkey.*", "retrieval", "single_needle", 0.0),
        (r"(ruler_)?niah_(multikey|mk).*", "retrieval", "multi_key", 0.0),
        (r"(ruler_)?niah_(multivalue|mv).*", "retrieval", "multi_value", 0.0),
        (r"(ruler_)?niah_(multiquery|mq).*", "retrieval", "multi_query", 0.0),
        (r"(ruler_)?(vt|variable_tracking)", "multi_hop", "variable_tracking", 0.0),
        (r"(ruler_)?[cf]we", "retrieval", "aggregation", 0.0),
        (r"(ruler_)?qa_(1|squad)", "retrieval", _QA, 0.0),
        (r"(ruler_)?qa_(2|hotpot.*)", "multi_hop", _QA, 0.0),
        (r"ruler.*", "retrieval", "suite", 0.0),
        (r"swde.*|fda.*", "retrieval", "extraction", 0.0),
        (r"nq_open|triviaqa.*", "general", "", 0.0),
        (r"squad.*|drop|natural_?questions.*", "retrieval", _QA, 0.0),
        (r"json_kv.*", "retrieval", "multi_key", 0.0),
        (r"kilt[_-].*|msmarco.*|alce.*", "retrieval", _QA, 0.0),
        (r"(openai_)?mrcr.*", "retrieval", "coreference", 0.0),
        (r"babilong.*|(longbench_)?(hotpotqa|2wikimqa|musique).*", "multi_hop", _QA, 0.0),
        (r"(longbench_)?(gov_?report|qmsum|multi_?news|vcsum).*", "summarization", "", 0.0),
        (r"infbench_sum.*|multi_lexsum.*|squality.*", "summarization", "", 0.0),
        (r"scrolls_(summscreenfd|govreport|qmsum).*", "summarization", "", 0.0),
        (r"(longbench_)?(trec|samsum|lsht).*", "icl", "", None),
        (r"icl_.*|banking77.*|clinic150.*|nlu.*", "icl", "", None),
        (r"(longbench_)?(narrativeqa|qasper|multifieldqa|dureader).*", "retrieval", _QA, 0.0),
        (r"infbench_(qa|choice).*", "retrieval", _QA, 0.0),
        (r"(longbench_)?(lcc|repobench.*)", "general", "", 0.0),
        (r"mmlu_pro.*", "general", "", 10.0),
        (r"(global_)?mmlu.*|arc_(easy|challenge)|hellaswag|openbookqa", "general", "", 25.0),
        (r"winogrande|piqa|boolq", "general", "", 50.0),
        (r"social_iqa|siqa", "general", "", 33.3),
        (r"lambada.*|gsm8k.*|(minerva|hendrycks)_math.*|bbh.*", "general", "", 0.0),
        (r"humaneval.*|mbpp.*", "general", "", 0.0),
        (r"wikitext.*|pile.*|c4.*|paloma.*", "general", "language_modelling", None),
    )
)
"""By the names that lm-evaluation-harness, RULER and HELMET give their tasks."""


def task_facts(task: str) -> TaskFacts:
    """Class, subclass and chance of a known task; a blank class for an unknown one."""
    name = task.strip().lower()
    for pattern, facts in _TASKS:
        if re.fullmatch(pattern, name):
            return facts
    return TaskFacts(task_class="")


def check_class(task_class: str) -> str:
    if task_class not in TASK_CLASSES:
        raise UsageError(
            f"task class must be one of {', '.join(TASK_CLASSES)}, got {clean(task_class)!r}"
        )
    return task_class
