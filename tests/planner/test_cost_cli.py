"""`attn-plan cost` as a user runs it: figures, whose price, a mistake in one line."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from planner.catalog import data_dir, load_engine, prices
from planner.cli.main import app, run_cli
from planner.cost.price import usual_price
from planner.store import Store
from planner.store.files import read_points

BASE = ("cost", "llama-3.1-8b", "-g", "h200-sxm", "--prompt", "32k", "-c", "64")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "store.db"


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def plan(store: Path, *arguments: str) -> Done:
    """In this process: the command line's start takes longer than its answer."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patched.setenv("ATTN_STORE", str(store))
        patched.setenv("NO_COLOR", "1")
        code = run_cli(lambda: app(list(arguments), standalone_mode=False))
    return Done(code, out.getvalue(), err.getvalue())


def plan_json(store: Path, *arguments: str) -> Any:
    done = plan(store, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def compared(store: Path) -> Any:
    """Full attention beside its 3:1 hybrid, over length."""
    return plan_json(store, *BASE, "--ratio", "3:1", "--over-context", "1k:128k")


def test_a_hybrid_stands_beside_its_model(compared: Any) -> None:
    full, hybrid = compared["models"]
    assert (full["mixers"], hybrid["mixers"]) == ("0:1 all full", "3:1 gated_deltanet:full")
    for key in ("ttft_s", "tpot_s"):
        assert 0 < full[key]["low"] < full[key]["value"] < full[key]["high"]
        assert hybrid[key]["value"] < full[key]["value"]
        assert full[key]["basis"] in ("measured", "interpolated", "scaled")
    assert hybrid["amdahl_ceiling"]["prefill"] < full["amdahl_ceiling"]["prefill"]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_breakdown_adds_up_and_names_providers(compared: Any, phase: str) -> None:
    for model in compared["models"]:
        parts = model["breakdown"][phase]
        total = model["ttft_s" if phase == "prefill" else "tpot_s"]["value"]
        assert sum(p["seconds"] for p in parts) == pytest.approx(total)
        assert all(p["provider"] and p["basis"] for p in parts)
        assert {"mixer", "projection", "channel", "lm_head"} <= {p["role"] for p in parts}


def test_dollars_follow_from_seconds(compared: Any) -> None:
    a_second = compared["price"]["usd_per_hour"] / 3600
    for model in compared["models"]:
        million_in = 1e6 * a_second * model["ttft_s"]["value"] / 32768
        million_out = 1e6 * a_second * model["tpot_s"]["value"] / model["batch_size"]
        assert model["usd"]["per_million_input_tokens"]["value"] == pytest.approx(million_in)
        assert model["usd"]["per_million_output_tokens"]["value"] == pytest.approx(million_out)


def test_memory_says_ideal_and_reserved(compared: Any) -> None:
    full, hybrid = (model["memory"] for model in compared["models"])
    assert full["kv_bytes_per_token"] == 131_072 == 4 * hybrid["kv_bytes_per_token"]
    assert (full["limited_by"], full["ideal"]["state_bytes"]) == ("memory", 0)
    assert hybrid["ideal"]["max_concurrency"] > hybrid["max_concurrency"] > full["max_concurrency"]


def test_the_hybrid_is_cheaper_from_some_length_on(compared: Any) -> None:
    full, hybrid = compared["models"]
    assert full["cheaper_than_first_from"] == {}
    lengths = [point["prompt_tokens"] for point in full["over_context"]]
    assert lengths == [1024 * 2**k for k in range(8)]
    for side in ("input", "output"):
        found = hybrid["cheaper_than_first_from"][side]
        assert 1024 < found["low"] < found["context"] < found["high"] < 32768
        key = f"per_million_{side}_tokens"
        for one, two in zip(full["over_context"], hybrid["over_context"], strict=True):
            cheaper = two["usd"][key]["value"] < one["usd"][key]["value"]
            assert cheaper == (one["prompt_tokens"] > found["context"])


def test_the_break_even_comes_with_its_residual(compared: Any) -> None:
    full, hybrid = (model["break_even"] for model in compared["models"])
    assert full is None
    # 2 x 2 MiB of state over 4,096 bytes a token
    assert hybrid["by_formula"] == 1024
    at = hybrid["measured"]
    assert at["residual"] == pytest.approx(at["context"] / 1024 - 1)
    assert at["full_provider"] and at["state_provider"] and at["basis"]


def test_the_break_even_is_of_one_devices_share_in_the_dtypes_kept(store: Path) -> None:
    kimi = plan_json(store, "cost", "kimi-linear-48b-a3b", "-g", "h200-sxm", "--tp", "4")
    # a quarter of 2 x 2 MiB of state over a whole latent of 576 x 2 bytes
    assert kimi["models"][0]["break_even"]["by_formula"] == pytest.approx(2**20 / 1152)
    command = (*BASE, "--ratio", "3:1", "--kv", "fp8")
    hybrid = plan_json(store, *command)["models"][1]["break_even"]
    assert (hybrid["by_formula"], hybrid["measured"]) == (2048, None)
    assert "2,048 tokens by formula; kernels were not measured" in " ".join(
        plan(store, *command).stdout.split()
    )


@pytest.mark.parametrize("nested", [False, True])
def test_quantised_weights_of_a_config_are_not_dropped_in_silence(
    store: Path, tmp_path: Path, nested: bool
) -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "vocab_size": 128256,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    }  # fmt: skip
    file = tmp_path / "config.json"
    said = "stores quantised weights (fp8); they count as unquantised"
    for stored in ({}, {"quantization_config": {"quant_method": "fp8"}}):
        whole = {**config, **stored}
        file.write_text(json.dumps({"text_config": whole} if nested else whole))
        for command in (("inspect", str(file)), ("cost", str(file), "-g", "h200-sxm")):
            done = plan(store, *command, "--json")
            assert done.returncode == 0 and json.loads(done.stdout)
            assert (said in done.stderr) == bool(stored)
            assert len(done.stderr.splitlines()) == len(stored)
        known = plan(store, "cost", str(file), "-g", "h200-sxm", "--weights", "fp8")
        assert (known.returncode, known.stderr) == (0, "")


def test_energy_is_not_made_up(compared: Any) -> None:
    for model in compared["models"]:
        energy = model["energy_j_per_token"]
        assert (energy["input"] is None) == bool(energy["not_measured"])


def test_the_usual_price_is_used_and_sourced(compared: Any) -> None:
    usual = usual_price(prices(), "h200-sxm")
    assert usual is not None
    assert compared["price"]["usd_per_hour"] == usual.usd_per_hour
    assert compared["price"]["source"] == usual.source


def test_a_users_own_price_goes_first(store: Path, tmp_path: Path) -> None:
    own = plan_json(store, *BASE, "--price", "2.5")
    assert own["price"]["usd_per_hour"] == 2.5 and own["price"]["kind"] == "own"
    mine = tmp_path / "mine.csv"
    mine.write_text(
        "hardware,usd_per_hour,kind,source,read_on\nh200-sxm,1.25,own,our contract,2026-01-02\n"
    )
    listed = plan_json(store, *BASE, "--prices", str(mine))
    assert (listed["price"]["usd_per_hour"], listed["price"]["source"]) == (1.25, "our contract")
    sides = [r["models"][0]["usd"]["per_million_input_tokens"]["value"] for r in (own, listed)]
    assert sides[0] == pytest.approx(2 * sides[1])


def test_utilisation_and_cache_hits_move_the_price(store: Path, compared: Any) -> None:
    usual = compared["models"][0]["usd"]
    moved = plan_json(store, *BASE, "--utilisation", "0.5", "--cache-hits", "0.75")
    found = moved["models"][0]["usd"]
    out, inp = "per_million_output_tokens", "per_million_input_tokens"
    assert found[out]["value"] == pytest.approx(2 * usual[out]["value"])
    assert found[inp]["value"] < 2 * 0.5 * usual[inp]["value"]


def test_several_models_on_two_devices_by_an_engines_rules(store: Path) -> None:
    found = plan_json(
        store, "cost", "qwen3.6-27b", "llama-3.1-8b", "-g", "h200-sxm", "--tp", "2",
        "--engine", "sglang", "--weights", "fp8", "--prompt", "8k", "-c", "8",
    )  # fmt: skip
    assert found["deployment"]["engine"]["source"] == load_engine("sglang").source
    hybrid, full = found["models"]
    assert hybrid["memory"]["limited_by"] in ("state", "kv_cache")
    assert full["memory"]["limited_by"] == "memory"
    assert "all_reduce" in {p["role"] for p in full["breakdown"]["decode"]}


def test_a_model_that_does_not_fit_says_what_to_do(store: Path) -> None:
    done = plan(store, "cost", "kimi-k2", "-g", "h200-sxm")
    assert done.returncode == 0, done.stderr
    note = "it does not fit, weights of"
    assert note in done.stdout and "usable" in done.stdout and "--tp" in done.stdout
    tpot, batch = (
        next(line.split(maxsplit=n) for line in done.stdout.splitlines() if name in line)
        for name, n in (("TPOT ", 1), ("at batch ", 2))
    )
    assert tpot[-1] == "does not fit" and batch[-1] == "n/a"
    found = plan_json(store, "cost", "kimi-k2", "-g", "h200-sxm")
    assert found["models"][0]["usd"]["per_million_output_tokens"]["value"] is None
    assert found["models"][0]["tpot_s"]["value"] is None


def test_a_device_without_a_price_asks_for_one(store: Path, tmp_path: Path) -> None:
    empty = tmp_path / "none.csv"
    empty.write_text("hardware,usd_per_hour,kind,source,read_on\n")
    done = plan(store, *BASE, "--prices", str(empty), "--over-context", "1k,2k")
    assert done.returncode == 0, done.stderr
    assert "give --price USD_PER_HOUR" in done.stdout and "1: TTFT" in done.stdout


def test_what_a_person_reads(store: Path) -> None:
    done = plan(store, *BASE, "--ratio", "3:1", "--engine", "vllm", "--over-context", "1k:64k")
    assert done.returncode == 0, done.stderr
    for text in (
        "vLLM 0.29", "$5.58 an hour", "TTFT", "TPOT", "if mixers were free", "reserved",
        "sequences that fit", "$ a million output tokens", "not measured", "residual",
        "where the time goes", "sdpa_cudnn", "2: $/M out", "input tokens cheaper from",
    ):  # fmt: skip
        assert text in done.stdout, text


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("cost", "llama-9"), "unknown model 'llama-9'", 2),
        (("cost", "llama-3.1-8b", "-g", "h2000"), "unknown hardware 'h2000'", 2),
        (("cost", "llama-3.1-8b", "--engine", "vlm"), "did you mean 'vllm'", 2),
        (("cost", "llama-3.1-8b", "--price", "-1"), "price must be above 0", 2),
        (("cost", "llama-3.1-8b", "--prices", "/no/such.csv"), "does not exist", 3),
        (("cost", "llama-3.1-8b", "--provider", "fla"), "FAMILY=NAME", 2),
        (("cost", "llama-3.1-8b", "--tp", "3"), "must divide the 32 heads", 2),
        (("cost", "llama-3.1-8b", "--cache-hits", "1"), "prefix_hit_rate", 2),
        (("cost", "llama-3.1-8b", "--utilisation", "0"), "utilisation", 2),
        (("cost", "llama-3.1-8b", "--over-context", "9:1"), "must rise", 2),
        (("cost", "llama-3.1-8b", "--ratio", "3:0:1"), "linear:full", 2),
        (("cost", "llama-3.1-8b", "--ratio", "3:1", "--mixer", "mamba9"), "unknown mixer", 2),
    ],
)
def test_a_mistake_gets_one_line(
    store: Path, arguments: tuple[str, ...], said: str, code: int
) -> None:
    done = plan(store, *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_inspect_says_what_an_engine_reserves(store: Path) -> None:
    asked = ("inspect", "qwen3.6-27b", "--context", "262144", "--batch", "4")
    plain, vllm = plan_json(store, *asked), plan_json(store, *asked, "--engine", "vllm")
    assert plain.items() <= vllm.items()
    # two states a request, their convolution tails in bf16
    assert 1.9 * plain["state_bytes"] <= vllm["reserved_state_bytes"] <= 2.1 * plain["state_bytes"]
    assert vllm["reserved_kv_cache_bytes"] >= plain["kv_cache_bytes"]
    assert plan(store, *asked, "--engine", "tgi").returncode == 2


def test_a_training_step_that_nobody_measured_is_refused_with_what_to_run(store: Path) -> None:
    done = plan(store, *BASE, "--training", "8x4k")
    assert done.returncode == 2
    assert "attn-profile run" in done.stderr and "--phases training" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ["8", "x4k", "0x4k", "8x", "8x-1", "axb"])
def test_a_training_step_is_sequences_times_tokens(store: Path, text: str) -> None:
    done = plan(store, *BASE, "--training", text)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A store with full attention timed in training too: four times each prefill."""
    path = tmp_path / "trained.db"
    opened = Store.open(str(path))
    environments, points = read_points(data_dir() / "measurements" / "h200-sxm.csv")
    for environment in environments.values():
        opened.add_environment(environment)
    for point in points:
        w = point.workload
        if w.op.family == "full_attention" and w.phase == "prefill" and point.samples_s:
            longer = tuple(4 * s for s in point.samples_s)
            opened.record(replace(point, workload=replace(w, training=True), samples_s=longer))
    opened.close()
    return path


def test_a_measured_training_step_stands_beside_the_rest(trained: Path) -> None:
    """Four prefills of the mixer; three products of every layer of weights."""
    asked = ("cost", "llama-3.1-8b", "-g", "h200-sxm", "--prompt", "8k", "--training", "1x8k")
    found = plan_json(trained, *asked)["models"][0]
    forward = {p["name"]: p for p in found["breakdown"]["prefill"]}
    step = {p["name"]: p for p in found["breakdown"]["training"]}
    assert step["full_attention"]["seconds"] == pytest.approx(
        4 * forward["full_attention"]["seconds"], rel=0.05
    )
    assert step["mlp_up"]["seconds"] == pytest.approx(3 * forward["mlp_up"]["seconds"])
    assert "training step, 1 x 8k" in plan(trained, *asked).stdout
