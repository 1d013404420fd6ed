"""attn-plan as a user runs it: figures of the bars, exit codes, one line for a mistake."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner.decision.use_case import use_case_ids
from planner.store.schema import SCHEMA_VERSION


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "store.db"


def plan(*arguments: str, store: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1"}
    if store is not None:
        environment["ATTN_STORE"] = str(store)
    return subprocess.run(
        [sys.executable, "-m", "planner.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def plan_json(*arguments: str, store: Path | None = None) -> Any:
    done = plan(*arguments, "--json", store=store)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_llama_3_70b_cache_at_128k() -> None:
    found = plan_json("inspect", "llama-3-70b", "--context", "131072")
    assert found["kv_cache_bytes"] == 42_949_672_960
    assert found["is_hybrid"] is False


def test_a_3_1_hybrid_has_a_quarter_of_the_slope() -> None:
    full = plan_json("inspect", "llama-3-70b")
    hybrid = plan_json("inspect", "llama-3-70b", "--ratio", "3:1")
    assert hybrid["kv_slope_bytes_per_token"] * 4 == full["kv_slope_bytes_per_token"]
    assert hybrid["is_hybrid"] is True


def test_qwen3_6_27b_at_256k() -> None:
    one = plan_json("inspect", "qwen3.6-27b", "--context", "262144")
    four = plan_json("inspect", "qwen3.6-27b", "--context", "262144", "--batch", "4")
    assert one["kv_cache_bytes"] / 2**20 == 16384.0
    assert four["state_bytes"] / 2**20 == 598.5


@pytest.mark.parametrize(
    ("use_case", "intent"), [*((name, "build") for name in use_case_ids()), ("rag", "deploy")]
)
def test_every_use_case_has_an_answer_with_its_basis(
    store: Path, use_case: str, intent: str
) -> None:
    done = plan("recommend", "-u", use_case, "--for", intent, "--json", store=store)
    assert done.returncode in (0, 5), done.stderr
    found = json.loads(done.stdout)
    assert (found["answer"] is None) == (done.returncode == 5)
    assert found["reasons"]
    for reason in found["reasons"]:
        assert reason["text"] and reason["basis"] and reason["source"]


def test_rag_keeps_full_attention_layers(store: Path) -> None:
    found = plan_json("recommend", "-u", "rag", store=store)
    assert found["answer"]["ratio"] != "1:0"


def test_without_a_floor_pure_linear_is_eligible(store: Path) -> None:
    strict = plan_json("recommend", "-u", "rag", store=store)
    free = plan_json("recommend", "-u", "rag", "--retention-floor", "0", store=store)

    def eligible(found: Any) -> set[str]:
        return {c["mixer"] for c in found["designs"] if c["ratio"] == "1:0" and c["feasible"]}

    assert eligible(strict) == set()
    assert {"linear_attention", "sliding_window", "mamba2"} <= eligible(free)


def test_limits_of_time_exclude_and_are_told(store: Path) -> None:
    """Who misses them is out, by name of the limit; the memo's command asks the same again."""
    asked = ("recommend", "-u", "throughput", "--ttft", "200ms", "--tpot", "30ms")
    found = plan_json(*asked, store=store)
    designs = found["designs"]
    for d in designs:
        assert ("ttft" in d["broken_limits"]) == (d["ttft_s"] > 0.2)
        assert ("tpot" in d["broken_limits"]) == (d["tpot_s"] > 0.03)
    assert {"ttft", "tpot"} <= {name for d in designs for name in d["broken_limits"]}
    inputs = {row["name"]: row for row in found["inputs"]}
    assert inputs["TTFT limit"]["value"] == "200 ms"
    assert inputs["TPOT limit"]["source"] == "changed from the use case"
    words = shlex.split(found["command"])
    assert words[words.index("--ttft") + 1] == "0.2s"
    again = plan_json(*words[1:], store=store)
    assert again["designs"] == designs and again["command"] == found["command"]


def test_limits_of_a_session_exclude_and_are_told(store: Path) -> None:
    """Bytes a session holds and gains, in the page's units; the command asks the same again."""
    asked = ("recommend", "--gpu", "h100-sxm", "--session-mib", "300", "--kv-growth", "30000")
    found = plan_json(*asked, store=store)
    for d in found["designs"]:
        assert ("session_bytes" in d["broken_limits"]) == (d["session_bytes"] > 300 * 2**20)
    assert {"session_bytes", "kv_slope"} <= {
        name for d in found["designs"] for name in d["broken_limits"]
    }
    inputs = {row["name"]: row["value"] for row in found["inputs"]}
    assert inputs["memory per session limit"] == "300.00 MiB"
    assert inputs["KV growth limit"] == "30,000 bytes per token"
    again = plan_json(*shlex.split(found["command"])[1:], store=store)
    assert again["designs"] == found["designs"]


def test_the_first_answer_is_that_of_the_page(store: Path) -> None:
    from planner.ui.scenario import FIRST_USE_CASE

    words = shlex.split(plan_json("recommend", store=store)["command"])
    assert FIRST_USE_CASE in words


def test_nothing_within_the_limits_names_the_nearest(store: Path) -> None:
    done = plan("recommend", "-u", "rag", "--ttft", "10ms", store=store)
    assert done.returncode == 5
    assert "ttft rejects" in done.stderr and "nearest is" in done.stderr


@pytest.mark.parametrize("intent", ["build", "deploy"])
def test_weights_that_do_not_fit_are_told_with_the_way_out(store: Path, intent: str) -> None:
    asked = ("-u", "rag", "-m", "llama-3-70b", "-g", "h100-sxm", "--for", intent)
    done = plan("recommend", *asked, store=store)
    # 70.6e9 parameters in bf16: 131 GiB; an engine may use 0.9 of 80 GB (79.6 GiB)
    reason = "does not fit, weights of 131.41 GiB against 71.68 GiB usable"
    assert done.returncode == 5
    assert reason in done.stderr and "--weights fp8" in done.stderr and "--tp" in done.stderr
    assert "at batch 0" not in done.stdout + done.stderr
    designs = json.loads(plan("recommend", *asked, "--json", store=store).stdout)["designs"]
    assert all(d["tpot_s"] is None and "tpot" not in d["broken_limits"] for d in designs)


def test_a_config_json_over_several_devices(store: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
                "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40,
                "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
                "vocab_size": 151936, "max_position_embeddings": 40960,
                "tie_word_embeddings": False, "quantization_config": {"quant_method": "awq"},
            }
        )
    )  # fmt: skip
    asked = ("recommend", "-u", "rag", "--for", "deploy", "-m", str(tmp_path))
    one, two = (plan(*asked, "--tp", n, "--json", store=store) for n in ("1", "2"))
    assert "stores quantised weights (awq)" in one.stderr
    alone, shared = json.loads(one.stdout), json.loads(two.stdout)
    full = [
        next(d for d in found["designs"] if d["label"] == "full attention")
        for found in (alone, shared)
    ]
    assert full[1]["ttft_s"] < full[0]["ttft_s"] < 2 * full[1]["ttft_s"]
    devices = {row["name"]: row["value"] for row in shared["inputs"]}["devices"]
    assert devices == "2 (tensor parallel)" and shared["command"] == ""


def test_streaming_says_what_a_session_holds(store: Path) -> None:
    done = plan("recommend", "-u", "streaming", store=store)
    if done.returncode == 0:
        assert "the next token adds 0 bytes" in done.stdout
    else:
        assert "kv_slope" in done.stdout and "floor" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("recommend", "-u", "ragg"), "did you mean 'rag'", 2),
        (("recommend", "--for", "sell"), "'sell' is not one of 'build', 'deploy'", 2),
        (("recommend", "--nope"), "No such option: --nope", 2),
        (("cost",), "cost --help", 2),
        (("nope",), "No such command 'nope'", 2),
        (("recommend", "--weights", "fp64"), "weights", 2),
        (("recommend", "--kv", "int4"), "KV cache", 2),
        (("recommend", "-g", "h2000"), "unknown hardware 'h2000'", 2),
        (("recommend", "-m", "llama-9"), "unknown model", 2),
        (("recommend", "--mixers", "mamba9"), "unknown mixer 'mamba9'", 2),
        (("recommend", "--ratios", "3:0:1"), "linear:full", 2),
        (("recommend", "--prompt", "-5"), "length", 2),
        (("recommend", "--prompt", "12x"), "length", 2),
        (("recommend", "--concurrency", "0"), "concurrency", 2),
        (("recommend", "--retention-floor", "7"), "floor", 2),
        (("recommend", "--weights", "fp3"), "unknown dtype 'fp3'", 2),
        (("recommend", "--ttft", "soon"), "--ttft must be a time such as 2s or 30ms", 2),
        (("recommend", "--tpot", "-1"), "--tpot must be a time", 2),
        (("recommend", "--session-mib", "-1"), "session_bytes must be a number of at least 0", 2),
        (("recommend", "--tp", "3"), "tensor_parallel must divide the 32 heads", 2),
        (("recommend", "-m", "./nowhere/config.json"), "does not exist", 3),
        (("inspect", "llama-9"), "unknown model", 2),
        (("inspect", "llama-3-70b", "--ratio", "3:0:1"), "linear:full", 2),
        (("report", "-o", "memo.docx"), ".docx", 2),
    ],
)
def test_a_mistake_gets_one_line(
    store: Path, arguments: tuple[str, ...], said: str, code: int
) -> None:
    done = plan(*arguments, store=store)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_text_file_as_store(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("not a database, only some words that are long enough\n" * 10)
    done = plan("recommend", "--store", str(notes))
    assert done.returncode == 3
    assert "not a SQLite file" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert notes.read_text().startswith("not a database")


def test_a_store_of_a_newer_schema(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    assert plan("db", "info", "--store", str(path)).returncode == 0
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_info SET version = ?", (SCHEMA_VERSION + 1,))
    done = plan("recommend", "--store", str(path))
    assert done.returncode == 3
    assert "pip install --upgrade attention-planner" in done.stderr


def test_the_dashboard_is_not_started_on_a_store_that_cannot_be_used(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("not a database, only some words that are long enough\n" * 10)
    done = plan("app", "--headless", "--port", "18501", "--store", str(notes))
    assert done.returncode == 3
    assert "not a SQLite file" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_dashboard_says_that_its_port_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = plan("app", "--headless", "--port", port, "--store", str(tmp_path / "s.db"))
    assert done.returncode == 3
    assert f"port {port}" in done.stderr and "--port" in done.stderr


@pytest.mark.parametrize("suffix", ["html", "md", "json"])
def test_a_report_is_written(store: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"memo.{suffix}"
    done = plan("report", "-u", "rag", "-o", str(path), store=store)
    assert done.returncode == 0, done.stderr
    assert "RAG with precise retrieval" in path.read_text()


def test_a_report_into_nowhere(store: Path, tmp_path: Path) -> None:
    done = plan("report", "-o", str(tmp_path / "no" / "memo.html"), store=store)
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1


def test_evidence_lists_its_sources(store: Path) -> None:
    rows = plan_json("evidence", "list", store=store)
    assert sum(r["comparisons"] for r in rows) > 300
    assert all(r["title"] for r in rows)


def test_importing_the_planner_brings_no_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'triton', 'profiler'):\n"
        "    sys.modules[name] = None\n"
        "import planner.cli, planner.decision.advisor, planner.report, planner.ui.main\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
