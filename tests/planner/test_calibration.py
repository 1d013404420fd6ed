"""Calibration: stacks, imported times and published figures, by hand and as shipped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from planner import catalog
from planner.calibration import (
    as_the_model,
    batch_curve,
    beside_imported,
    current,
    end_to_end,
    kernel_sums,
    kernels_by_mode,
    load_published,
    ratios_by_pair,
    stack_calibration,
    stack_residuals,
    stack_table,
)
from planner.calibration.stacks import ratio_and_mixer
from planner.catalog import load_hardware, load_model
from planner.cli.main import app
from planner.cost.streams import LOG_HALF_WIDTH, SHARE_OF_BANDWIDTH, stack_streams, streams
from planner.decision.advisor import Advisor
from planner.errors import UsageError
from planner.mixers import get_mixer
from planner.store import Environment, Store
from planner.workload import MixerOp, Op, StackOp, canonical_json, layer_ops

H200 = load_hardware("h200-sxm")
MODEL = load_model("llama-3.1-8b")
FULL, GDN, MAMBA = (MODEL.spec_for(m) for m in ("full_attention", "gated_deltanet", "mamba2"))
KINDS = (("F", FULL), ("G", GDN), ("M", MAMBA))
PROVIDERS = {"F": "sdpa_cudnn", "G": "fla", "M": "mamba_ssm"}
LAYER_S = {"F": 60e-6, "G": 90e-6, "M": 80e-6}
START_S = 10e-6


def row(op: Op, seconds: float, provider: str, **changed: Any) -> dict[str, Any]:
    """A point of a decode step at 1k, as `Store.points` gives it."""
    base = {
        "key": f"{op.short()} {provider} {changed}",
        "environment_id": "env", "family": op.family, "spec": canonical_json(op.to_dict()),
        "provider": provider, "variant": "", "phase": "decode", "batch_size": 1,
        "new_tokens": 1, "cached_tokens": 1024, "dtype": "bf16", "training": False,
        "mode": "graph", "cache_state": "cold", "outcome": "ok", "median_s": seconds,
        "p20_s": seconds, "p80_s": seconds, "samples_s": [seconds] * 5,
        "timing_method": "graph_flush", "min_bytes": 1e9, "telemetry": "{}",
        "device": "NVIDIA H200", "device_kind": "cuda", "measured_at": "2026-11-23T10:00:00",
        "method_version": "2",
    }  # fmt: skip
    return base | changed


def stack(pattern: str, seconds: float, **changed: Any) -> dict[str, Any]:
    op = StackOp(pattern, tuple(k for k in KINDS if k[0] in pattern), 4096)
    provider = "+".join(PROVIDERS[c] for c, _ in op.kinds)
    return row(op, seconds, provider, **changed)


def stacks(**changed: Any) -> pd.DataFrame:
    """Layers of 60, 90 and 80 us, and every timing 10 us too long."""
    patterns = ("F", "G", "M", "GF", "GGGF", "MF", "MMMF")
    return pd.DataFrame(
        [stack(p, sum(LAYER_S[c] for c in p) + START_S, **changed) for p in patterns]
    )


# Stacks


def test_a_sum_of_layers_counts_the_start_of_each() -> None:
    found = stack_residuals(stacks()).set_index("pattern")
    assert set(found.index) == {"GF", "GGGF", "MF", "MMMF"}
    assert found.loc["GGGF", "extra_starts"] == 3
    assert found.loc["GGGF", "sum_s"] == pytest.approx(330e-6 + 4 * START_S)
    assert found.loc["GGGF", "residual"] == pytest.approx(340 / 370 - 1)
    assert found.loc["GGGF", "ratio"] == "3:1" and found.loc["GGGF", "mixer"] == "gated_deltanet"


def test_the_start_is_learnt_from_the_other_mixers_alone() -> None:
    points = stacks()
    found = stack_residuals(points)
    assert found["start_s"].to_numpy() == pytest.approx(START_S)
    assert found["predicted_s"].to_numpy() == pytest.approx(found["stack_s"].to_numpy())
    alone = stack_residuals(points[~points["provider"].str.contains("mamba")])
    assert alone["start_s"].isna().all() and alone["predicted_s"].isna().all()


def test_layers_with_another_mlp_do_not_stand_in() -> None:
    """A gated MLP of the same width is a third more arithmetic than a plain one."""
    kinds = tuple(k for k in KINDS if k[0] in "GF")

    def timed(pattern: str, seconds: float, gated: bool) -> dict[str, Any]:
        used = tuple(k for k in kinds if k[0] in pattern)
        op = StackOp(pattern, used, 4096, mlp_size=8192, mlp_gated=gated)
        return row(op, seconds, "+".join(PROVIDERS[c] for c, _ in op.kinds))

    layers = [timed("F", 130e-6, True), timed("G", 160e-6, True)]
    assert stack_residuals(pd.DataFrame([*layers, timed("GF", 250e-6, False)])).empty
    plain = [timed("F", 110e-6, False), timed("G", 140e-6, False)]
    found = stack_residuals(pd.DataFrame([*layers, *plain, timed("GF", 250e-6, False)]))
    assert found["sum_s"].to_list() == pytest.approx([250e-6])


def test_stacks_of_mla_alone_are_not_called_full_attention() -> None:
    mla = get_mixer("mla").matched(dict(KINDS)["F"], 4096)
    kda = get_mixer("kda").matched(dict(KINDS)["F"], 4096)
    assert ratio_and_mixer(StackOp("AA", (("A", mla),), 4096)) == ("0:1", "mla")
    assert ratio_and_mixer(StackOp("KKKA", (("A", mla), ("K", kda)), 4096)) == ("3:1", "kda")


def test_a_stack_is_not_compared_with_itself() -> None:
    assert stack_residuals(pd.DataFrame([stack("GG", 190e-6)])).empty
    both = pd.DataFrame([stack("GG", 190e-6), stack("G", 100e-6)])
    assert stack_residuals(both)["sum_s"].to_list() == pytest.approx([200e-6])


def test_times_without_a_start_need_none_taken_off() -> None:
    points = stacks(timing_method="graph_rotating")
    found = stack_residuals(points)
    assert (found["extra_starts"] == 0).all()
    assert (found["predicted_s"] == found["sum_s"]).all()


@pytest.mark.parametrize("changed", [{"batch_size": 8}, {"mode": "eager"}, {"dtype": "fp16"}])
def test_layers_of_other_conditions_do_not_stand_in(changed: dict[str, Any]) -> None:
    points = stacks()
    layers = points["spec"].map(lambda text: len(json.loads(text)["pattern"]) == 1)
    assert stack_residuals(points.assign(**{k: [v if one else points[k].iloc[0] for one in layers]
                                            for k, v in changed.items()})).empty  # fmt: skip


def test_clocks_stand_beside_the_times() -> None:
    points = stacks(telemetry='{"after": {"sm_mhz": 1980}}')
    found = stack_residuals(points)
    assert (found["stack_mhz"] == 1980).all()
    assert found["layers_mhz"].to_numpy() == pytest.approx(1980)
    assert stack_residuals(stacks())["stack_mhz"].isna().all()


def test_kernels_of_a_stack_add_up_and_what_is_not_measured_is_left_out() -> None:
    parts = [p for spec in (FULL, GDN) for p in layer_ops(spec, 4096)]
    named = {"full_attention": "sdpa_cudnn", "gated_deltanet": "fla"}
    kernels = [row(p, 20e-6, named.get(p.family, "torch")) for p in dict.fromkeys(parts)]
    points = pd.DataFrame([*kernels, stack("GF", 200e-6), stack("MF", 200e-6)])
    found = kernel_sums(points, kernels_by_mode(points, H200))
    assert list(found["label"]) == ["1:1 gated_deltanet"]
    assert found["predicted_s"].iloc[0] == pytest.approx(20e-6 * len(parts))
    assert found["low_s"].iloc[0] <= found["predicted_s"].iloc[0] <= found["high_s"].iloc[0]


def test_the_cost_models_sum_has_what_runs_between_too() -> None:
    """By hand: two norms and a rotary code or a gated norm, a launch and the bytes of each."""
    parts = [p for spec in (FULL, GDN) for p in layer_ops(spec, 4096)]
    named = {"full_attention": "sdpa_cudnn", "gated_deltanet": "fla"}
    kernels = [row(p, 20e-6, named.get(p.family, "torch")) for p in dict.fromkeys(parts)]
    points = pd.DataFrame([*kernels, stack("GF", 200e-6)])
    sums = kernel_sums(points, kernels_by_mode(points, H200))
    elements = 2 * 4 * 4096 + 2 * (4096 + 1024 + 1024) + 3 * 32 * 128
    moved_s = 2 * elements / (SHARE_OF_BANDWIDTH * H200.bandwidth)
    assert sums["between_s"].iloc[0] == pytest.approx(4 * 20e-6 + moved_s)
    found, alone = as_the_model(sums).iloc[0], sums.iloc[0]
    assert found["predicted_s"] == pytest.approx(alone["predicted_s"] + alone["between_s"])
    half, between = alone["high_s"] - alone["predicted_s"], alone["between_s"]
    down, up = 1 - math.exp(-LOG_HALF_WIDTH), math.exp(LOG_HALF_WIDTH) - 1
    assert found["low_s"] == pytest.approx(found["predicted_s"] - math.hypot(half, down * between))
    assert found["high_s"] == pytest.approx(found["predicted_s"] + math.hypot(half, up * between))
    eager = sums.assign(mode="eager")
    assert as_the_model(eager).empty  # there launches add, which these kernels hold themselves


def test_a_stacks_streams_are_those_of_its_model_less_embedding_and_head() -> None:
    """Llama 3.1 8B's 32 blocks with their MLP: one norm less, and neither end."""
    mlp = MODEL.mlp
    assert mlp is not None
    op = StackOp("F" * 32, KINDS[:1], 4096, mlp_size=mlp.intermediate_size, mlp_gated=mlp.gated)
    blocks = {s.name: s for s in stack_streams(op)}
    whole = {s.name: s for s in streams(MODEL, 1)}
    assert set(whole) - set(blocks) == {"embedding", "sampling"}
    norms = blocks.pop("norm and residual")
    assert norms == replace(whole["norm and residual"], count=64)
    assert all(blocks[name] == whole[name] for name in blocks)


def test_short_stacks_are_not_judged() -> None:
    residuals = stack_residuals(stacks())
    sums = kernel_sums(stacks(), {})
    assert sums.empty
    assert stack_table(residuals.assign(stack_s=50e-6), sums) == []
    assert len(stack_table(residuals, sums)) > 0


# Ours beside imported ones


def sides(ours_s: float, **changed: Any) -> pd.DataFrame:
    """One own decode step at 1k and imported ones of 20 us around it."""
    op = MixerOp(FULL)
    theirs = {"device_kind": "imported", "environment_id": "theirs", "cache_state": "warm"}
    return pd.DataFrame(
        [
            row(op, ours_s, "sdpa_cudnn", **({"min_bytes": 4e6} | changed)),
            *(
                row(op, 20e-6, "vllm_fa3@0.24", cached_tokens=n, **theirs)
                for n in (512, 1024, 2048)
            ),
        ]
    )


ENVIRONMENTS = {
    "env": Environment(
        device="NVIDIA H200",
        device_kind="cuda",
        versions={"cudnn": "91900"},
        facts={"cache_bytes": 60e6, "max_sm_mhz": 1980},
    )
}


def one_ratio(ours_s: float, **changed: Any) -> pd.Series[Any]:
    found = beside_imported(sides(ours_s, **changed), H200, ENVIRONMENTS)
    assert len(found) == 1
    return found.iloc[0]


def test_a_ratio_near_one_has_no_causes() -> None:
    found = one_ratio(22e-6)
    assert found["ratio"] == pytest.approx(1.1, rel=0.02)
    assert not found["outside"] and found["causes"] == ""
    assert found["versions"] == "cudnn 91900, vllm_fa3@0.24"


def test_causes_with_a_size_are_taken_off_but_not_below_one() -> None:
    found = one_ratio(40e-6)
    assert found["outside"] and "pair of events" in found["causes"]
    cold_us = 4e6 / H200.bandwidth * 1e6
    assert found["left"] == pytest.approx((40 - 13 - cold_us) / 20, rel=0.02)
    assert one_ratio(30e-6)["left"] == 1.0
    plain = one_ratio(40e-6, timing_method="graph_rotating")
    assert "pair of events" not in plain["causes"] and "cold cache" not in plain["causes"]
    assert plain["left"] == pytest.approx(2.0 - cold_us / 20, rel=0.02)


def test_a_cold_cache_is_a_cause_where_the_data_would_have_stayed() -> None:
    small = one_ratio(40e-6, timing_method="graph_rotating", min_bytes=30e6)
    assert "cold cache here, warm there: its 28.61 MiB" in small["causes"]
    large = one_ratio(40e-6, timing_method="graph_rotating", min_bytes=300e6)
    assert "cold cache" not in large["causes"] and large["left"] == large["ratio"]


def test_slow_clocks_are_a_cause() -> None:
    slow = one_ratio(40e-6, telemetry='{"after": {"sm_mhz": 1500}}')
    assert "SM clock at 1500 of 1980 MHz" in slow["causes"]


def test_other_shapes_and_far_lengths_are_not_compared() -> None:
    assert beside_imported(sides(20e-6, cached_tokens=1 << 17), H200, ENVIRONMENTS).empty
    assert beside_imported(sides(20e-6).iloc[:1], H200, ENVIRONMENTS).empty


# Which points


def test_points_of_an_older_environment_are_not_judged_with_the_newest() -> None:
    older = row(MixerOp(FULL), 1e-3, "sdpa_cudnn", environment_id="old",
                measured_at="2026-10-01T00:00:00")  # fmt: skip
    theirs = row(MixerOp(FULL), 1e-3, "x@1", environment_id="theirs", device_kind="imported",
                 measured_at="2026-12-01T00:00:00")  # fmt: skip
    newest = row(MixerOp(FULL), 1e-3, "sdpa_cudnn")
    found = current(pd.DataFrame([older, theirs, newest]))
    assert set(found["environment_id"]) == {"theirs", "env"}
    assert len(current(pd.DataFrame([theirs]))) == 1


# Published figures


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"against": None}, "needs `against`"),
        ({"line": {"intercept_ms": 1}}, "needs the hardware"),
        ({"points": [{"phase": "decode"}]}, "missing"),
    ],
)
def test_a_broken_publication_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    data = catalog.entries("end_to_end")["kimi-linear"] | change
    data = {k: v for k, v in data.items() if v is not None}
    monkeypatch.setattr(catalog, "entries", lambda folder: {"kimi-linear": data})
    with pytest.raises(UsageError, match=message) as error:
        load_published()
    assert "end_to_end/kimi-linear.toml" in str(error.value)


def test_every_publication_names_a_model_and_a_device_of_the_catalog() -> None:
    found = load_published()
    assert {p.id for p in found} >= {"kimi-linear", "llama-3.1-8b-h100"}
    for published in found:
        assert published.architecture.num_layers > 0
        assert published.hardware in ("", *catalog.hardware_ids())
        assert published.source and published.read_on


def test_only_a_headline_is_taken_apart(advisor: Advisor) -> None:
    (line,) = [p for p in load_published() if p.id == "llama-3.1-8b-h100"]
    with pytest.raises(UsageError, match="no headline"):
        batch_curve(line, advisor.cost_model("h100-sxm"))


# The shipped data


@pytest.fixture(scope="module")
def advisor(tmp_path_factory: pytest.TempPathFactory) -> Advisor:
    return Advisor(Store.open(str(tmp_path_factory.mktemp("store") / "store.db")))


@pytest.fixture(scope="module")
def h200(advisor: Advisor) -> pd.DataFrame:
    return current(advisor.points[advisor.points["device_id"] == "h200-sxm"])


Lines = Callable[[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def lines(h200: pd.DataFrame) -> Lines:
    table = stack_calibration(h200, H200)
    for line in table:
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in line.items()})
    by = {(r["fold"], r["phase"], r["mode"], r["ratio"]): r for r in table}
    return lambda fold, phase: by[fold, phase, "graph", "all"]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_measured_stacks_are_predicted_from_single_layers(lines: Lines, phase: str) -> None:
    found = lines("less_starts", phase)
    assert found["n"] >= 40
    assert found["median_ape"] <= 5.0 and found["p90_ape"] <= 10.0


def test_what_kernels_leave_out_of_a_block_is_told(lines: Lines) -> None:
    """Norms, gates and residuals are not in the sum: it has to be too short, and seen to be."""
    for phase in ("prefill", "decode"):
        found, model = (lines(fold, phase) for fold in ("sum_of_kernels", "cost_model"))
        assert found["n"] >= 60 and found["median_error"] < 0
        assert 0 <= found["coverage80"] <= model["coverage80"] <= 1
        assert model["n"] == found["n"] and model["median_error"] > found["median_error"]


def test_every_ratio_outside_the_band_has_its_causes(h200: pd.DataFrame, advisor: Advisor) -> None:
    found = beside_imported(h200, H200, advisor.store.environments())
    assert len(found) > 300
    outside = found[found["outside"].astype(bool)]
    assert (outside["causes"] != "").all() and (found.loc[~found["outside"], "causes"] == "").all()
    pairs = ratios_by_pair(found)
    print(pairs.round(2).to_string())
    assert pairs["n"].sum() == len(found) and pairs["outside"].sum() == len(outside)
    same_code = pairs[pairs["theirs"].str.startswith(("vllm_linear", "trtllm_chunk"))]
    assert same_code["median"].between(0.9, 1.1).all()


def test_kimi_linear_is_reproduced_in_shape(advisor: Advisor) -> None:
    found = end_to_end("h200-sxm", advisor.cost_model)
    kimi = found[found["id"] == "kimi-linear"].set_index(["phase", "context"])["predicted"]
    for context in (4096, 16384):
        assert kimi["decode", context] == pytest.approx(1.0, abs=0.25)
        assert kimi["prefill", context] == pytest.approx(1.0, abs=0.25)
    assert kimi["decode", 524288] == pytest.approx(1.8, rel=0.15)
    assert kimi["decode", 1 << 20] == pytest.approx(2.2, rel=0.15)
    for phase in ("prefill", "decode"):
        assert kimi[phase].is_monotonic_increasing


def test_why_its_headline_needs_large_batches(advisor: Advisor) -> None:
    (published,) = [p for p in load_published() if p.headline]
    curve = batch_curve(published, advisor.cost_model("h200-sxm"))
    assert curve["ceiling"].iloc[0] == pytest.approx(27 / 7)
    assert (curve["equal"] < curve["ceiling"]).all()
    assert curve["equal"].is_monotonic_increasing
    assert published.headline is not None
    assert curve["against_one"].iloc[-1] == pytest.approx(published.headline.speedup, rel=0.15)
    assert curve["against_ms"].iloc[0] == pytest.approx(published.headline.against_ms, rel=0.15)


# The command


@pytest.fixture(scope="module")
def shipped_store(advisor: Advisor) -> str:
    return str(advisor.store.engine.url.database)


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["calibrate", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_json_is_one_document_of_plain_rows(shipped_store: str) -> None:
    found = run(
        "-g", "h100-sxm", "--part", "kernels", "--part", "claims", "--store", shipped_store
    )
    assert set(found) == {"hardware", "kernels", "claims", "claims_by_batch"}
    wanted = {"family", "provider", "phase", "fold", "n", "median_ape", "p90_ape", "coverage80"}
    assert all(wanted <= set(line) for line in found["kernels"])
    assert not any(isinstance(v, float) and not math.isfinite(v)
                   for line in found["kernels"] for v in line.values())  # fmt: skip


def test_the_table_says_where_there_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.store.shipped.load_shipped", lambda store: [])
    arguments = ["calibrate", "-g", "h200-sxm", "--part", "kernels", "--part", "stacks",
                 "--part", "imported", "--store", str(tmp_path / "empty.db")]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.count("nothing to judge") == 3
    assert "kernels: " in done.stderr


def test_an_unknown_part_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["calibrate", "--part", "luck"]).exit_code == 2


@pytest.mark.slow
def test_the_tables_show_every_part(shipped_store: str) -> None:
    arguments = ["calibrate", "-g", "h200-sxm", "--store", shipped_store]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    for title in (
        "kernels, ",
        "stacks, ",
        "imported, ",
        "claims, ",
        "quality, ",
        "quality_misses",
    ):
        assert title in done.stdout
    assert "leave_one_out" in done.stdout and "sum_of_kernels" in done.stdout
