"""Importing results: each harness's shape, the user's own source, and files that are broken."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from planner.architecture import Architecture
from planner.catalog import load_model
from planner.errors import EnvironmentProblem, PlannerError, UsageError
from planner.formats.evidence_import import (
    EvaluatedModel,
    import_evidence,
    import_names,
    remove_import,
)
from planner.formats.results import read_scores
from planner.formats.ruler import TASKS
from planner.formats.scores import ScoreFile
from planner.quality.features import MixFeatures
from planner.quality.prediction import LEVELS
from planner.quality.retention import QualityModel
from planner.report.csv import safe_csv
from planner.store import Store
from planner.store.evidence import (
    ComparisonTable,
    EvidenceTable,
    SourceTable,
    load_published,
)

LM_EVAL: dict[str, Any] = {
    "results": {
        "niah_single_1": {"alias": "niah_single_1", "4096,none": 0.98, "8192,none": -1.0,
                          "4096_stderr,none": "N/A"},
        "ruler_vt": {"alias": "ruler_vt", "4096,none": 0.615},
        "mmlu": {"acc,none": 0.6, "acc_stderr,none": 0.01, "alias": "mmlu"},
        "mmlu_law": {"acc,none": 0.5, "acc_stderr,none": 0.02, "alias": " - law"},
        "gsm8k": {"exact_match,flexible-extract": 0.4, "exact_match,strict-match": 0.37},
        "wikitext": {"word_perplexity,none": 11.5, "bits_per_byte,none": 0.7},
    },
    "group_subtasks": {"mmlu": ["mmlu_law"]},
    "n-shot": {"niah_single_1": 0, "mmlu": 5, "gsm8k": 8},
    "n-samples": {"niah_single_1": {"original": 500, "effective": 500}},
    "config": {"model": "hf", "model_args": "pretrained=mine"},
    "model_name": "my/model",
    "git_hash": "4e7e0d4",
}  # fmt: skip
RULER = "0,1,2\nTasks,niah_single_1,vt,\nScore,100.0,83.2,\nNulls,0/500,3/500,\n"
HELMET = {
    "args": {"model_name_or_path": "my/model"},
    "data": [],
    "averaged_metrics": {"exact_match": 88.4, "substring_exact_match": 91.0, "output_len": 12.0},
}
HELMET_NAME = "json_kv_eval_test_k1800_in131072_size100_shots2_sampFalsemax100min0t0.0p1.0_42.json"
INSPECT: dict[str, Any] = {
    "version": 2,
    "status": "success",
    "eval": {"task": "swde", "model": "openai/mine", "dataset": {"name": "swde"}},
    "results": {
        "total_samples": 20,
        "completed_samples": 20,
        "scores": [{"name": "match", "scorer": "match",
                    "metrics": {"accuracy": {"value": 0.85}, "stderr": {"value": 0.02}}}],
    },
    "samples": [],
}  # fmt: skip
OWN = "task,task_class,value,eval_length\ncontract clauses,retrieval,81.5,32768\nswde,,70,2048\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def published_store() -> Store:
    """A store with the published evidence alone."""
    store = Store.open("sqlite:///:memory:", shipped=False)
    load_published(store)
    return store


def hybrid(ratio: str = "3:1", mixer: str = "kda") -> Architecture:
    return load_model("llama-3.1-8b").with_mixer(mixer, ratio)


def table(results: ScoreFile) -> dict[tuple[str, int | None], tuple[float, str, int | None]]:
    return {(s.task, s.eval_length): (s.value, s.task_class, s.k_shot) for s in results.scores}


def test_lm_eval_lengths_are_metrics_and_minus_one_was_not_run(
    write: Callable[[str, Any], Path],
) -> None:
    found = read_scores(write("results_2026-11-01T00-00-00.json", LM_EVAL))
    assert table(found) == {
        ("niah_single_1", 4096): (98.0, "retrieval", 0),
        ("ruler_vt", 4096): (61.5, "multi_hop", None),
        ("mmlu", None): (60.0, "general", 5),
        ("gsm8k", None): (pytest.approx(37.0), "general", 8),
        ("wikitext", None): (0.7, "general", None),
    }
    assert found.model == "my/model" and found.format == "lm_eval" and len(found.sha256) == 64
    assert found.scores[0].num_samples == 500
    assert {s.metric for s in found.scores if s.task == "wikitext"} == {"bits_per_byte"}


def test_ruler_summary_is_transposed_percent_and_needs_its_length(
    write: Callable[[str, Any], Path],
) -> None:
    path = write("summary.csv", RULER.replace(",\n", "\n"))
    with pytest.raises(UsageError, match="does not say the context length; give it with --length"):
        read_scores(path)
    found = read_scores(path, length=65536)
    assert table(found) == {
        ("niah_single_1", 65536): (100.0, "retrieval", None),
        ("vt", 65536): (83.2, "multi_hop", None),
    }
    assert [s.num_samples for s in found.scores] == [500, 500]


def test_helmet_says_length_and_shots_in_its_name(write: Callable[[str, Any], Path]) -> None:
    found = read_scores(write(HELMET_NAME, HELMET))
    assert table(found) == {("json_kv_eval_test_k1800", 131072): (91.0, "retrieval", 2)}
    assert table(read_scores(write(HELMET_NAME, HELMET), length=4096)) == table(found)
    score_file = read_scores(write(HELMET_NAME + ".score", HELMET["averaged_metrics"]))
    assert table(score_file) == table(found)
    with pytest.raises(UsageError, match="give the length with --length"):
        read_scores(write("json_kv.json", HELMET))


def test_inspect_reads_json_and_eval_and_only_finished_logs(
    write: Callable[[str, Any], Path],
) -> None:
    found = read_scores(write("log.json", INSPECT), length=2048)
    assert table(found) == {("swde", 2048): (85.0, "retrieval", None)}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("header.json", json.dumps(INSPECT))
    assert table(read_scores(write("log.eval", packed.getvalue()), length=2048)) == table(found)
    with pytest.raises(UsageError, match="only finished evaluations count, status is 'error'"):
        read_scores(write("failed.json", {**INSPECT, "status": "error"}))
    percent = json.loads(json.dumps(INSPECT))
    percent["results"]["scores"][0]["metrics"]["accuracy"]["value"] = 85.0
    with pytest.raises(UsageError, match="accuracy must be between 0 and 1"):
        read_scores(write("percent.json", percent))
    assert table(read_scores(write("percent.json", percent), is_percent=True)) == {
        ("swde", None): (85.0, "retrieval", None)
    }


def test_own_csv_takes_classes_from_the_file_or_the_name(
    write: Callable[[str, Any], Path],
) -> None:
    assert table(read_scores(write("own.csv", OWN))) == {
        ("contract clauses", 32768): (81.5, "retrieval", None),
        ("swde", 2048): (70.0, "retrieval", None),
    }


def test_a_given_length_is_of_the_scores_whose_own_is_not_in_the_file(
    write: Callable[[str, Any], Path],
) -> None:
    own = write("own.csv", "task,value,eval_length\nswde,70,\nfda,60,2048\n")
    assert {s.task: s.eval_length for s in read_scores(own, length=32768).scores} == {
        "swde": 32768,
        "fda": 2048,
    }
    bare = write("bare.csv", "task,value\nswde,70\n")
    assert [s.eval_length for s in read_scores(bare, length=32768).scores] == [32768]
    assert [s.eval_length for s in read_scores(bare).scores] == [None]
    harness = {
        "results": {"swde": {"contains,none": 0.7}, "ruler_vt": {"4096,none": 0.8}},
        "versions": {},
    }
    scores = read_scores(write("harness.json", harness), length=32768).scores
    assert {s.task: s.eval_length for s in scores} == {"swde": 32768, "ruler_vt": 4096}


def test_an_unknown_task_asks_for_its_class(write: Callable[[str, Any], Path]) -> None:
    path = write("own.csv", "task,value\nclauses,80\n")
    with pytest.raises(UsageError, match="give it with --task-class 'clauses=CLASS'"):
        read_scores(path)
    found = read_scores(path, classes={"clauses": "retrieval"})
    assert found.scores[0].task_class == "retrieval"
    with pytest.raises(UsageError, match="task class must be one of"):
        read_scores(path, classes={"clauses": "needles"})


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("r.json", "{", "is not JSON"),
        ("r.json", b"\xff\xfe{}", "is not UTF-8 text"),
        ("r.json", "[" * 100_000, "nested too deeply"),
        ("r.json", '{"results": {}, "results": {}}', "stands twice"),
        ("r.json", '{"a": 1}', "is JSON, but not lm-evaluation-harness, HELMET or Inspect"),
        ("r.json", {"results": {}, "n-shot": {}}, "has no score that is understood"),
        ("r.json", {"results": {"mmlu": {"acc,none": 60}}, "n-shot": {}}, "between 0 and 1"),
        ("r.json", {"results": {"mmlu": {"acc,none": "0.6"}}, "n-shot": {}}, "must be a number"),
        ("r.json", '{"results": {"mmlu": {"acc,none": NaN}}, "n-shot": {}}', "a finite number"),
        ("r.json", {"results": {"mmlu": {"acc,none": True}}, "n-shot": {}}, "must be a number"),
        ("r.json", {"results": {"mmlu": [1]}, "n-shot": {}}, "must be an object"),
        ("r.csv", "a,b\n1,2\n", "is neither a RULER summary"),
        ("r.csv", "Tasks,a,b\nScore,1\n", "rows Tasks and Score of one length"),
        ("r.csv", "task,value\nmmlu\n", "1 cells, the header has 2"),
        ("r.csv", "task,value\nmmlu,60\nmmlu,61\n", "stands twice"),
        ("r.csv", "task,value,extra\nmmlu,60,1\n", "unknown column 'extra'"),
        ("r.csv", "task,value,eval_length\nmmlu,60,4K\n", "eval_length must be a whole number"),
        ("r.eval", b"PK\x03\x04broken", "is not an Inspect log"),
    ],
)
def test_a_broken_file_is_one_clear_line(
    write: Callable[[str, Any], Path], name: str, content: Any, reason: str
) -> None:
    with pytest.raises(UsageError) as error:
        read_scores(write(name, content), length=4096)
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_missing_file_and_a_wrong_format(write: Callable[[str, Any], Path]) -> None:
    with pytest.raises(EnvironmentProblem, match="does not exist"):
        read_scores(Path("nowhere.json"))
    with pytest.raises(UsageError, match="unknown format 'xlsx'"):
        read_scores(write("r.json", LM_EVAL), format="xlsx")
    with pytest.raises(UsageError, match="is JSON, but not helmet"):
        read_scores(write("r.json", LM_EVAL), format="helmet")


# Into the store


def evaluated(path: Path, arch: Architecture, **facts: Any) -> EvaluatedModel:
    return EvaluatedModel(architecture=arch, files=(read_scores(path),), **facts)


def test_with_a_control_it_is_the_users_own_source_and_outweighs(
    write: Callable[[str, Any], Path],
) -> None:
    store = published_store()
    mine = "task,task_class,value,eval_length\na,retrieval,50,32768\nb,retrieval,40,32768\n"
    full = "task,task_class,value,eval_length\na,retrieval,90,32768\nb,retrieval,80,32768\n"
    found = import_evidence(
        store,
        "mine",
        evaluated(write("m.csv", mine), hybrid(), params_b=8.0, train_length=65536),
        control=evaluated(write("f.csv", full), load_model("llama-3.1-8b"), params_b=8.0),
    )
    assert (found.num_rows, found.num_compared, found.skipped) == (4, 2, ())
    assert not found.is_absolute_only
    comparisons = store.comparisons()
    own = comparisons[comparisons["source"] == "mine"]
    assert set(own["points"]) == {-40.0} and own["imported_file_sha256"].str.len().eq(64).all()
    assert set(own["mixer"]) == {"kda"} and set(own["full_share"]) == {0.25}
    assert set(own["placement"]) == {"uniform"} and set(own["tier"]) == {"imported"}
    asked = MixFeatures.of(hybrid())
    before = QualityModel.fit(comparisons[comparisons["source"] != "mine"])
    after = QualityModel.fit(comparisons)
    a, b = (m.predict(asked, "retrieval", 32768) for m in (before, after))
    assert b.points_median < (a.points_median - 40) / 2 and b.level == LEVELS[0]
    assert b.strength in ("moderate", "strong")


def test_without_a_control_it_is_an_absolute_level_only(
    write: Callable[[str, Any], Path],
) -> None:
    store = published_store()
    found = import_evidence(store, "mine", evaluated(write("m.csv", OWN), hybrid()))
    assert found.is_absolute_only and found.num_rows == 2
    assert "mine" not in set(store.comparisons()["source"])
    assert "mine" in set(store.evidence()["source"])


def test_the_same_results_are_one_source_whatever_their_name(
    write: Callable[[str, Any], Path],
) -> None:
    store = published_store()
    path = write("m.csv", OWN)
    import_evidence(store, "mine", evaluated(path, hybrid()))
    with pytest.raises(UsageError, match="under the name 'mine'"):
        import_evidence(store, "again", evaluated(path, hybrid()))
    assert "again" not in set(store.evidence()["source"])


def test_fractions_beside_percent_are_refused(write: Callable[[str, Any], Path]) -> None:
    header = "task,task_class,value,eval_length\n"
    mine = write("m.csv", header + "a,retrieval,0.815,32768\nb,retrieval,0.0,32768\n")
    full = write("f.csv", header + "a,retrieval,85,32768\nb,retrieval,80,32768\n")
    with pytest.raises(UsageError, match=r"at most 0\.815 %.*up to 85 %"):
        import_evidence(
            published_store(),
            "mine",
            evaluated(mine, hybrid(), params_b=8.0),
            control=evaluated(full, load_model("llama-3.1-8b"), params_b=8.0),
        )


def test_importing_again_replaces_and_a_taken_name_is_refused(
    write: Callable[[str, Any], Path],
) -> None:
    store = published_store()
    path = write("m.csv", OWN)
    for _ in range(2):
        found = import_evidence(store, "mine", evaluated(path, hybrid()))
        assert found.num_replaced == 0
    assert (store.evidence()["source"] == "mine").sum() == 2
    other = write("other.csv", "task,task_class,value,eval_length\na,retrieval,50,32768\n")
    assert import_evidence(store, "mine", evaluated(other, hybrid())).num_replaced == 2
    import_evidence(store, "mine", evaluated(path, hybrid()))
    for name in ("jamba", "Mine!", "", "=cmd"):
        with pytest.raises(UsageError):
            import_evidence(store, name, evaluated(path, hybrid()))


def test_a_control_has_to_be_full_attention_of_the_same_recipe(
    write: Callable[[str, Any], Path],
) -> None:
    store = published_store()
    path = write("m.csv", OWN)
    mine = evaluated(path, hybrid(), params_b=8.0)
    with pytest.raises(UsageError, match="the control has to be full attention"):
        import_evidence(store, "mine", mine, control=evaluated(path, hybrid("7:1")))
    big = evaluated(path, load_model("llama-3.1-8b"), params_b=70.0)
    with pytest.raises(UsageError, match="not of the same recipe: size 8 and 70"):
        import_evidence(store, "mine", mine, control=big)


def test_what_cannot_be_fitted_is_shown_and_said(write: Callable[[str, Any], Path]) -> None:
    store = published_store()
    mine = "task,task_class,metric,value\nlow,retrieval,,5\nppl,general,perplexity,9\nx,icl,,50\n"
    full = "task,task_class,metric,value\nlow,retrieval,,6\nppl,general,perplexity,8\n"
    found = import_evidence(
        store,
        "mine",
        evaluated(write("m.csv", mine), hybrid()),
        control=evaluated(write("f.csv", full), load_model("llama-3.1-8b")),
    )
    assert found.num_compared == 0
    assert sorted(found.skipped) == [
        "low: control below 20",
        "ppl: perplexity is another scale",
        "x: the control has no such task",
    ]


def test_only_like_is_compared_with_like(write: Callable[[str, Any], Path]) -> None:
    """Another metric, another length, or a length beyond training is no comparison."""
    store = published_store()
    mine = {"results": {"arc_easy": {"acc,none": 0.7}, "vt": {"4096,none": 0.7, "65536,none": 0.6},
                        "swde": {"contains,none": 0.7}}, "n-shot": {"swde": 1}}  # fmt: skip
    full = {"results": {"arc_easy": {"acc_norm,none": 0.8}, "swde": {"contains,none": 0.7},
                        "vt": {"4096,none": 0.9, "65536,none": 0.8}}, "n-shot": {}}  # fmt: skip
    found = import_evidence(
        store,
        "mine",
        evaluated(write("m.json", mine), hybrid(), train_length=32768),
        control=evaluated(write("f.json", full), load_model("llama-3.1-8b")),
    )
    assert found.num_compared == 1
    assert sorted(found.skipped) == [
        "arc_easy: measured by acc, the control by acc_norm",
        "swde: the control has it at other lengths, shots or metrics",
        "vt: beyond its trained length",
    ]


def test_rulers_mean_is_kept_as_a_level_and_never_compared(
    write: Callable[[str, Any], Path],
) -> None:
    store = published_store()
    path = write("s.csv", f"Tasks,{','.join(TASKS)}\nScore,{','.join(['80'] * 12)},93\n")
    files = (read_scores(path, length=4096), read_scores(path, length=8192))
    models = [
        EvaluatedModel(architecture=arch, files=files)
        for arch in (hybrid(), load_model("llama-3.1-8b"))
    ]
    found = import_evidence(store, "mine", models[0], control=models[1])
    rows = store.evidence()
    rows = rows[(rows["source"] == "mine") & (rows["task"] == "RULER")]
    assert rows["value"].tolist() == [81.0] * 4  # (12 x 80 + 93) / 13, twice for each model
    assert found.num_compared == 26 and found.skipped == ()
    means = store.comparisons().query("source == 'mine' and task == 'RULER'")
    assert set(means["use"]) == {"show"} and means["reason"].str.startswith("the mean of").all()
    part = EvaluatedModel(
        architecture=hybrid(),
        files=(read_scores(write("p.csv", RULER.replace(",\n", "\n")), length=4096),),
    )
    assert import_evidence(store, "part", part).num_rows == 2
    with pytest.raises(UsageError, match="task 'niah_single_1' stands in s.csv and in s.csv"):
        import_evidence(store, "mine", replace(models[0], files=files[:1] * 2))


def test_every_row_keeps_the_hash_of_the_file_it_was_read_from(
    write: Callable[[str, Any], Path],
) -> None:
    store = published_store()
    mine, full = write("m.csv", OWN), write("f.csv", OWN.replace("81.5", "90"))
    import_evidence(
        store,
        "mine",
        evaluated(mine, hybrid()),
        control=evaluated(full, load_model("llama-3.1-8b")),
    )
    rows = store.evidence()
    rows = rows[rows["source"] == "mine"]
    hashes = {p.name: sha256(p.read_bytes()).hexdigest() for p in (mine, full)}
    assert rows["imported_file_sha256"].tolist() == [hashes[name] for name in rows["location"]]


def test_removing_takes_everything_out_and_nothing_else(
    write: Callable[[str, Any], Path],
) -> None:
    store = published_store()
    before = contents(store)
    with pytest.raises(UsageError, match="nothing was imported yet"):
        remove_import(store, "mine")
    import_evidence(store, "mine", evaluated(write("m.csv", OWN), hybrid()))
    assert import_names(store) == ["mine"]
    with pytest.raises(UsageError, match="unknown import 'min'; did you mean 'mine'"):
        remove_import(store, "min")
    assert remove_import(store, "mine") == 2
    assert contents(store) == before and import_names(store) == []


NASTY = '=HYPERLINK("http://x","y")<script>alert(1)</script>'


def test_formulas_and_scripts_in_names_stay_inert(write: Callable[[str, Any], Path]) -> None:
    from jinja2 import Environment

    store = published_store()
    data = {**LM_EVAL, "model_name": NASTY, "results": {"mmlu": {"acc,none": 0.5}}}
    import_evidence(store, "mine", evaluated(write("r.json", data), hybrid()))
    rows = store.evidence()
    rows = rows[rows["source"] == "mine"]
    text = safe_csv(rows)
    parsed = pd.read_csv(io.StringIO(text))
    assert parsed["model"].str.startswith("'=").all()
    page = Environment(autoescape=True).from_string("{{ m }}").render(m=rows["model"].iloc[0])
    assert "<script>" not in page


# Anything at all

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


def leaves(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    children: list[Any] = []
    if isinstance(data, dict):
        children = list(data.items())
    elif isinstance(data, list):
        children = list(enumerate(data))
    return [at, *(place for key, value in children for place in leaves(value, (*at, key)))]


def put(data: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copy = json.loads(json.dumps(data))
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return copy


@st.composite
def spoiled_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A results file with something random in it: a value, a byte, a cut, or all of it."""
    name, base = draw(
        st.sampled_from(
            (("results.json", LM_EVAL), (HELMET_NAME, HELMET), ("log.json", INSPECT),
             ("summary.csv", RULER), ("own.csv", OWN))
        )
    )  # fmt: skip
    if isinstance(base, str):
        content = base.encode()
        cells = draw(st.lists(st.tuples(st.integers(0, 60), st.text(max_size=8)), max_size=3))
        for position, text in cells:
            content = content[:position] + text.encode() + content[position + 1 :]
    else:
        place = draw(st.sampled_from(leaves(base)))
        content = json.dumps(put(base, place, draw(JSON_VALUES))).encode()
    how = draw(st.sampled_from(("keep", "cut", "byte", "random", "zip")))
    if how == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    elif how == "byte" and content:
        at = draw(st.integers(0, len(content) - 1))
        content = content[:at] + draw(st.binary(min_size=1, max_size=3)) + content[at + 1 :]
    elif how == "random":
        content = draw(st.binary(max_size=200))
    elif how == "zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(draw(st.sampled_from(("header.json", "other.json"))), content)
        name, content = "log.eval", packed.getvalue()[: draw(st.sampled_from((40, 10**6)))]
    return name, content


EMPTY = Store.open("sqlite:///:memory:", shipped=False)
KDA, LLAMA = hybrid(), load_model("llama-3.1-8b")


def contents(store: Store) -> tuple[object, ...]:
    """How many rows each table has, and the hash and time of every file that is in."""
    tables = (SourceTable, EvidenceTable, ComparisonTable)
    with store.begin() as session:
        counts = [session.scalar(select(func.count()).select_from(t)) for t in tables]
    return (*counts, str(store.datasets()))


@pytest.mark.slow
@settings(
    max_examples=1000, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    spoiled=spoiled_files(), length=st.none() | st.just(4096), percent=st.booleans(),
    with_control=st.booleans(),
)  # fmt: skip
def test_any_file_is_imported_or_refused_and_never_half_written(
    tmp_path: Path,
    spoiled: tuple[str, bytes],
    length: int | None,
    percent: bool,
    with_control: bool,
) -> None:
    name, content = spoiled
    path = tmp_path / name
    path.write_bytes(content)
    before = contents(EMPTY)
    try:
        results = read_scores(path, length=length, is_percent=percent, classes={})
        mine, control = (
            EvaluatedModel(architecture=arch, files=(results,)) for arch in (KDA, LLAMA)
        )
        found = import_evidence(EMPTY, "mine", mine, control=control if with_control else None)
    except PlannerError as error:
        assert str(error) and "\n" not in str(error)
        assert contents(EMPTY) == before
    else:
        with EMPTY.begin() as session:
            rows = session.execute(
                select(EvidenceTable.metric, EvidenceTable.value, EvidenceTable.task)
            ).all()
        models = 2 if with_control else 1
        assert len(rows) == found.num_rows == models * len(results.scores) > 0
        assert not EMPTY.comparisons()["points"].any()
        for metric, value, task in rows:
            assert math.isfinite(value) and task.isprintable()
            assert 0 <= value <= 100 or metric not in ("accuracy", "score")
