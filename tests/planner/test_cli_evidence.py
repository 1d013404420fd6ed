"""attn-plan evidence: your own results in, seen in the recommendation, and out again."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from planner.cli import app, run_cli
from planner.store import Store

LENGTH = 32768
RULER_TASKS = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
)  # fmt: skip
HYBRID = ("--model", "llama-3.1-8b", "--ratio", "3:1", "--mixer", "kda")
FLA = {
    "model_type": "kda", "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 128256,
    "num_heads": 32, "head_dim": 128, "expand_v": 1.0, "intermediate_size": 14336,
    "attn": {"layers": list(range(3, 32, 4)), "num_heads": 32, "num_kv_heads": 8},
    "max_position_embeddings": 65536,
}  # fmt: skip


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shipped") / "store.db"
    Store.open(str(path)).close()
    return path


@pytest.fixture
def store(shipped: Path, tmp_path: Path) -> Path:
    """A copy of the shipped store, free to change."""
    return Path(shutil.copy(shipped, tmp_path / "store.db"))


def plan(store: Path, *arguments: str | Path) -> Done:
    """A command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    environment = patch.dict(os.environ, ATTN_STORE=str(store), NO_COLOR="1")
    with environment, redirect_stdout(out), redirect_stderr(err):
        try:
            code = run_cli(lambda: app(list(map(str, arguments))))
        except SystemExit as done:
            code = int(done.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def plan_json(store: Path, *arguments: str | Path) -> Any:
    done = plan(store, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ruler(path: Path, score: float) -> Path:
    """A RULER summary with one score throughout."""
    path.write_text(
        f"Tasks,{','.join(RULER_TASKS)}\nScore,{','.join([str(score)] * len(RULER_TASKS))}\n"
    )
    return path


def mine(store: Path, folder: Path, score: float, *more: str | Path) -> Any:
    """An import of RULER at 32k as "mine", compared with full attention at 93."""
    return plan_json(
        store, "evidence", "import", ruler(folder / "h.csv", score), "--name", "mine", *HYBRID,
        "--control", ruler(folder / "f.csv", 93.0), "--length", "32k", *more,
    )  # fmt: skip


@pytest.mark.slow
def test_with_a_control_it_outweighs_the_published_and_decides(
    store: Path, tmp_path: Path
) -> None:
    before = plan_json(store, "recommend", "-u", "rag")
    assert before["answer"]["mixer"] == "full_attention"

    found = mine(store, tmp_path, 93.0)
    assert found["compared"] == 13 and not found["absolute_only"]
    assert found["control"] == "0:1 all full" and found["architecture"] == "3:1 kda:full"
    retrieval = next(e for e in found["effects"] if e["task_class"] == "retrieval")
    assert retrieval["before"]["own_sources"] == [] and retrieval["before"]["strength"] == "weak"
    assert retrieval["after"]["own_sources"] == ["mine"]
    assert retrieval["after"]["level"] == "mixer × class"
    assert retrieval["after"]["low"] > retrieval["before"]["low"]

    good = plan_json(store, "recommend", "-u", "rag")
    assert good["answer"]["mixer"] == "kda"
    own = next(s for s in good["sources"] if s["key"] == "mine")
    assert own["tier"] == "imported" and own["rows"] == 13
    assert "imported and published" in {f["basis"] for f in good["figures"]}
    assert any("mine (your own)" in r["source"] for r in good["reasons"])

    assert mine(store, tmp_path, 50.0)["effects"][1]["points"] == -43.0
    bad = plan_json(store, "recommend", "-u", "rag")
    assert bad["answer"]["mixer"] == "full_attention"
    kda = next(d for d in bad["designs"] if d["mixer"] == "kda" and d["ratio"] == "3:1")
    assert kda["accuracy_kept"] < 0.75 and not kda["feasible"]

    assert plan(store, "evidence", "remove", "mine").returncode == 0
    assert plan_json(store, "recommend", "-u", "rag")["answer"] == before["answer"]


@pytest.mark.slow
def test_without_a_control_it_is_an_absolute_level_and_says_so(
    store: Path, tmp_path: Path
) -> None:
    before = plan_json(store, "recommend", "-u", "rag")
    done = plan(
        store, "evidence", "import", ruler(tmp_path / "h.csv", 93.0), "--name", "mine", *HYBRID,
        "--length", "32k",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "an absolute level only: without --control" in done.stdout
    assert plan_json(store, "recommend", "-u", "rag")["designs"] == before["designs"]
    first = plan_json(store, "evidence", "list")[0]
    assert (first["source"], first["imported"], first["comparisons"]) == ("mine", True, 0)
    assert first["numbers"] == 14  # 13 tasks and their mean


@pytest.mark.slow
def test_an_absolute_floor_is_answered_or_refused_and_own_scores_answer_it(
    store: Path, tmp_path: Path
) -> None:
    asked = ("recommend", "-u", "rag", "--retention-floor", "0", "--floor", "RULER>=85@128k")
    done = plan(store, *asked, "--json")
    assert done.returncode == 5
    before = json.loads(done.stdout)
    assert before["answer"] is None
    breaks = {(d["mixer"], d["ratio"]): "; ".join(d["breaks"]) for d in before["designs"]}
    assert "P(RULER >= 85 at 128k) = " in breaks["kda", "3:1"]
    assert "kimi_linear" in breaks["kda", "3:1"]
    assert "not covered" in breaks["sliding_window", "3:1"]

    low = plan(store, *asked[:-1], "RULER>=70@128k", "--json")
    designs = json.loads(low.stdout)["designs"]
    kda = next(d for d in designs if d["mixer"] == "kda" and d["ratio"] == "3:1")
    (why,) = kda["breaks"]
    assert why.startswith("P(RULER >= 70 at 128k) = 1.00 (needs 0.80)")
    assert "none within 4 times of 8.69B in size; moderate evidence is asked for" in why

    own = ruler(tmp_path / "h.csv", 93.0)
    plan_json(store, "evidence", "import", own, "--name", "mine", *HYBRID, "--length", "128k")
    after = plan_json(store, *asked)
    passes = {d["mixer"] for d in after["designs"] if d["feasible"]}
    assert "kda" in passes and not passes & {"full_attention", "sliding_window"}
    for floor, said in (("RULER=85", "BENCHMARK>=SCORE"), ("NIAH>=85@4k", "unknown benchmark")):
        done = plan(store, "recommend", "--floor", floor)
        assert done.returncode == 2 and said in done.stderr


def test_strength_counts_own_rows_that_are_near_and_is_what_predict_says(
    store: Path, tmp_path: Path
) -> None:
    """Own rows count one by one. The published source is a mixture of 48B, which is not near an 8B
    for activating 3B."""

    def imported(tasks: str, *length: str) -> tuple[Any, Any]:
        files = [tmp_path / "h.csv", tmp_path / "f.csv"]
        for file, score in zip(files, (80, 81), strict=True):
            lines = [f"{task},retrieval,{score}" for task in tasks]
            file.write_text("\n".join(["task,task_class,value", *lines]))
        (effect,) = plan_json(
            store, "evidence", "import", files[0], "--name", "mine", *HYBRID,
            "--control", files[1], *length,
        )["effects"]  # fmt: skip
        said = plan_json(store, "evidence", "predict", *HYBRID, "--context", "32k")
        return effect, said["classes"]["retrieval"]

    effect, said = imported("a", "--length", "32k")
    assert effect["context"] == 32768 and effect["after"] == said
    assert said["strength"] == "weak" and said["nearest"].endswith("at 32k (mine)")
    for tasks, strength in (("ab", "moderate"), ("abc", "strong")):
        effect, said = imported(tasks, "--length", "32k")
        assert effect["after"] == said and said["strength"] == strength
    effect, said = imported("ab")
    assert effect["context"] is None
    assert effect["after"]["strength"] == said["strength"] == "weak"


def test_one_length_for_each_file(store: Path, tmp_path: Path) -> None:
    short, long = (ruler(tmp_path / f"{n}.csv", n) for n in (95, 80))
    arguments = ("evidence", "import", short, long, "--name", "mine", *HYBRID)
    found = plan_json(store, *arguments, "--length", "4k", "--length", "128k")
    assert found["numbers"] == 28
    assert len({f["sha256"] for f in found["files"]}) == 2
    done = plan(store, *arguments, "--length", "4k")
    assert done.returncode == 2 and "stands in 95.csv and in 80.csv" in done.stderr


def packed(log: dict[str, Any]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("header.json", json.dumps(log))
    return target.getvalue()


INSPECT = {
    "version": 2, "status": "success", "eval": {"task": "swde", "model": "me/hybrid"},
    "results": {"completed_samples": 20, "scores": [
        {"name": "match", "metrics": {"accuracy": {"value": 85.0}}}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "options", "format"),
    [
        ("results.json", {"results": {"niah_single_1": {"32768,none": 0.9, "4096,none": -1.0}},
                          "n-shot": {"niah_single_1": 0}}, (), "lm_eval"),
        ("summary.csv", "Tasks,vt\nScore,90\n", ("--length", "32k"), "ruler"),
        ("json_kv_eval_test_in32768_size100_shots2_42.json",
         {"averaged_metrics": {"substring_exact_match": 90.0}}, (), "helmet"),
        ("log.eval", packed(INSPECT), ("--length", "2k", "--percent"), "inspect"),
        ("own.csv", "task,value,eval_length\nclauses,90,32768\n",
         ("--task-class", "clauses=retrieval"), "csv"),
    ],
    ids=lambda v: v if isinstance(v, str) and len(v) < 20 else "",
)  # fmt: skip
def test_every_format_with_a_config(
    store: Path,
    tmp_path: Path,
    name: str,
    content: Any,
    options: tuple[str, ...],
    format: str,
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(FLA))
    found = plan_json(
        store, "evidence", "import", path, "--name", "mine", "--config", config, "--control", path,
        "--control-model", "llama-3.1-8b", *options,
    )  # fmt: skip
    assert found["architecture"] == "3:1 kda:full" and found["files"][0]["format"] == format
    assert found["compared"] == 1 and found["effects"][0]["points"] == 0.0


def test_mistakes_are_one_line_and_leave_the_store_as_it_was(store: Path, tmp_path: Path) -> None:
    good, text = ruler(tmp_path / "h.csv", 93.0), tmp_path / "notes.json"
    text.write_text("not json")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**FLA, "index_topk": 2048}))
    hybrid_control = ("--control", good, "--control-config", config)
    mistakes: list[tuple[tuple[str | Path, ...], str, int]] = [
        ((good,), "--config (a config.json) or --model", 2),
        ((good, "--model", "llama-9"), "unknown model 'llama-9'", 2),
        ((good, "--model", "tiny", "--config", config), "give one of the two", 2),
        ((good, "--config", config), "index_topk (2048) is not understood", 2),
        ((good, "--config", tmp_path / "no.json"), "does not exist", 3),
        ((good, *HYBRID), "give it with --length", 2),
        ((good, *HYBRID, "--length", "4q"), "length must be a whole number", 2),
        ((good, *HYBRID, "--length", "4k", "--length", "8k"), "once for each of the 1 files", 2),
        ((text, *HYBRID), "is not JSON", 2),
        ((tmp_path / "no.csv", *HYBRID), "does not exist", 3),
        ((good, *HYBRID, "--length", "4k", "--format", "xlsx"), "unknown format 'xlsx'", 2),
        ((good, *HYBRID, "--length", "4k", "--task-class", "x"), "must be TASK=CLASS", 2),
        ((good, *HYBRID, "--length", "4k", "--task-class", "vt=x"), "task class must be one", 2),
        ((good, *HYBRID, "--length", "4k", "--control-model", "tiny"), "with --control", 2),
        ((good, *HYBRID, "--length", "4k", "--control", good, "--control-model", "llama-3-70b"),
         "not of the same recipe: size", 2),
        ((good, *HYBRID, "--length", "4k", *hybrid_control), "index_topk", 2),
        ((good, *HYBRID, "--length", "4k", "--name", "=cmd()"), "name must be lower-case", 2),
        ((good, *HYBRID, "--length", "4k", "--name", "jamba"), "'jamba' is already in", 2),
    ]  # fmt: skip
    for arguments, said, code in mistakes:
        done = plan(store, "evidence", "import", "--name", "mine", *arguments)
        assert (done.returncode, done.stdout) == (code, ""), (arguments, done.stderr)
        assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not any(row["imported"] for row in plan_json(store, "evidence", "list"))
    done = plan(store, "evidence", "remove", "mine")
    assert done.returncode == 2 and "nothing was imported yet" in done.stderr


@pytest.mark.slow
def test_formulas_scripts_and_escapes_in_names_stay_inert(store: Path, tmp_path: Path) -> None:
    """In the terminal, in CSV and in the memos whose answer rests on the import."""
    nasty = '=HYPERLINK("http://x")<script>alert(1)</script>|**bold**\x1b[31m'
    tasks = {name: {"32768,none": 0.93} for name in RULER_TASKS} | {nasty: {"acc,none": 0.9}}
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"results": tasks, "n-shot": {}, "model_name": nasty}))
    done = plan(
        store, "evidence", "import", path, "--name", "mine", *HYBRID, "--control", path,
        "--task-class", f"{nasty.replace(chr(27), ' ')}=general",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    listed = plan(store, "evidence", "list")
    assert "HYPERLINK" in listed.stdout
    assert "\x1b" not in listed.stdout + done.stdout + done.stderr
    table = plan(store, "evidence", "list", "--csv").stdout
    assert "'=HYPERLINK" in table and "\n=" not in table and ",=" not in table
    memos = {suffix: tmp_path / f"memo.{suffix}" for suffix in ("html", "md", "json")}
    for memo in memos.values():
        done = plan(store, "report", "-u", "rag", "-o", memo)
        assert done.returncode == 0, done.stderr
    page = memos["html"].read_text()
    assert "HYPERLINK" in page and "<script>alert(1)" not in page
    text = memos["md"].read_text()
    assert "HYPERLINK" in text and "<script>alert(1)" not in re.sub(r"\\.", "", text)
    json.loads(memos["json"].read_text())


def test_predict_says_what_is_kept_by_which_rows_and_what_is_not_covered(
    store: Path, tmp_path: Path
) -> None:
    asked = ("evidence", "predict", "--model", "llama-3.1-8b")
    hybrid = plan_json(store, *asked, "--ratio", "3:1", "--context", "32k")
    assert hybrid["architecture"] == "3:1 gated_deltanet:full"
    retrieval = hybrid["classes"]["retrieval"]
    assert retrieval["points_low"] < retrieval["points"] < retrieval["points_high"]
    assert len(retrieval["row_ids"]) == retrieval["rows"] and retrieval["own_sources"] == []
    assert hybrid["classes"]["summarization"] is None
    full = plan_json(store, *asked)["classes"]
    assert all(c["retention"] == 1.0 and c["level"] == "definition" for c in full.values())
    young = plan_json(store, *asked, "--ratio", "3:1", "--train-tokens", "200000")
    assert young["classes"]["retrieval"]["points_low"] < retrieval["points_low"]
    text = plan(store, *asked, "--ratio", "1:0").stdout
    assert "multi_hop: not covered" in text and "no controlled multi_hop row" in text
    config = tmp_path / "config.json"
    config.write_text(json.dumps(FLA))
    found = plan_json(store, "evidence", "predict", "--config", config, "--origin", "converted")
    assert found["origin"] == "converted" and found["architecture"] == "3:1 kda:full"
    for arguments, said in (
        ((), "give one of the two"),
        (("--model", "tiny", "--ratio", "3:1", "--placement", "top"), "unknown placement 'top'"),
        (("--model", "tiny", "--context", "0"), "at least 1 token"),
    ):
        done = plan(store, "evidence", "predict", *arguments)
        assert done.returncode == 2 and said in done.stderr


def test_claims_have_verdict_effect_rows_and_sources(store: Path) -> None:
    claims = plan_json(store, "evidence", "claims")
    assert len(claims) == 10
    by_id = {c["id"]: c for c in claims}
    assert by_id["kimi_k2"]["verdict"] == "contradicted"
    assert len(by_id["three_to_one"]["row_ids"]) > 50
    text = plan(store, "evidence", "claims").stdout
    assert "CONTRADICTED: Kimi K2 uses hybrid linear attention." in text


def test_inspect_reads_a_config_json(store: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FLA))
    for path in (tmp_path, tmp_path / "config.json"):
        found = plan_json(store, "inspect", path, "--context", "128k")
        assert found["mixers"] == "3:1 kda:full" and found["is_hybrid"]
        # 8 full layers of 8 + 8 heads x 128 in bf16
        assert found["kv_cache_bytes"] == 8 * 131072 * 2 * 8 * 128 * 2
