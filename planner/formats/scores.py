"""Scores: what a foreign results file says, in one shape, and what a task's name tells.

>>> task_facts("niah_single_2").subclass
'single_needle'
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from planner.errors import UsageError
from planner.formats.foreign import clean
from planner.store.evidence_rules import TASK_CLASSES


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of a results file. Percent metrics are 0 to 100 here whatever the file says.

    `task_class` is "" where the task's name does not tell it. `eval_length` is in tokens.
    `measure` is what the file calls the metric where it has several: acc, acc_norm, f1.
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
    measure: str = ""

    @property
    def key(self) -> tuple[str, str, int | None, int | None]:
        """What of a control has to be the same."""
        return self.task, self.metric, self.eval_length, self.k_shot


@dataclass(frozen=True, kw_only=True)
class ScoreFile:
    """A results file: its format, the model it names, its scores and its hash."""

    format: str
    model: str
    scores: tuple[Score, ...]
    sha256: str
    path: Path


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
