"""The rule of a recommendation, on hand-made scores and costs and on the shipped evidence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.architecture import LayerPattern
from planner.catalog import load_hardware, load_model
from planner.cost.kernel import KernelCost
from planner.cost.memory import Memory
from planner.cost.model import CostModel, Deployment
from planner.decision.candidates import baseline, candidates
from planner.decision.explain import judged_by_others, session_text
from planner.decision.frontier import pareto_front
from planner.decision.recommend import choose, probability_text, recommend
from planner.decision.recommendation import Recommendation, shortage_text
from planner.decision.use_case import Floor, UseCase, load_use_case, use_case_ids
from planner.errors import UnknownName, UsageError
from planner.quality.retention import QualityModel
from planner.quality.task_mix import TaskMix
from planner.report.designs import designs_of
from planner.store import Store

MODEL = load_model("llama-3.1-8b")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(str(tmp_path_factory.mktemp("store") / "store.db"))


@pytest.fixture(scope="module")
def task_mix(store: Store) -> TaskMix:
    return TaskMix.from_store(store)


@pytest.fixture(scope="module")
def cost_model() -> CostModel:
    hardware = load_hardware("h200-sxm")
    return CostModel(KernelCost.fit([], hardware), Deployment(hardware=hardware))


def advise(
    use_case: str | UseCase, cost_model: CostModel, task_mix: TaskMix, **options: Any
) -> Recommendation:
    case = load_use_case(use_case) if isinstance(use_case, str) else use_case
    return recommend(
        case,
        **{
            "model": MODEL,
            "intent": "build",
            "cost_model": cost_model,
            "task_mix": task_mix,
            **options,
        },
    )


def pure_eligible(found: Recommendation) -> set[str]:
    return {e.candidate.mixer for e in found.evaluated if e.candidate.is_pure and e.feasible}


# Candidates


def test_candidates_are_mixers_times_ratios_times_placements_and_the_baseline() -> None:
    found = candidates(MODEL, mixers=["mamba2"], ratios=["3:1", "1:0"])
    # 3:1 at five placements, 1:0 once (nothing to place), full attention
    assert len(found) == 5 + 1 + 1
    assert found[0].is_baseline and found[0].arch.pattern == LayerPattern("F" * 32)
    assert {c.arch.num_full_layers for c in found[1:]} == {8, 0}


def test_a_ratio_that_a_short_stack_cannot_hold_is_no_candidate() -> None:
    found = candidates(load_model("tiny"))
    assert all(c.arch.num_full_layers for c in found if not c.is_pure)
    assert {c.ratio for c in found if c.mixer == "gated_deltanet"} == {
        "1:1", "3:1", "5:1", "7:1", "1:0"
    }  # fmt: skip


def test_placements_cost_the_same(cost_model: CostModel) -> None:
    case = load_use_case("rag")
    found = candidates(MODEL, mixers=["mamba2"], ratios=["3:1"])[1:]
    costs = {cost_model.estimate(c.arch, case.traffic).gpu_seconds_per_request for c in found}
    assert max(costs) == pytest.approx(min(costs))


def test_a_deployed_model_is_its_own_baseline_and_others_are_conversions() -> None:
    hybrid = load_model("qwen3-next-80b-a3b")
    found = candidates(hybrid, intent="deploy", mixers=["mamba2"], ratios=["3:1"])
    assert found[0].arch is hybrid
    assert {c.arch.origin for c in found[1:]} == {"converted"}
    assert baseline(hybrid, "build").arch.num_full_layers == 48


# The frontier


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5) | st.just(math.nan)),
        min_size=1,
        max_size=30,
    )
)
def test_the_frontier_is_what_brute_force_finds(points: list[tuple[int, float]]) -> None:
    cost = np.array([p[0] for p in points], dtype=float)
    quality = np.array([p[1] for p in points], dtype=float)
    front = pareto_front(cost, quality)
    kept = {(cost[i], quality[i]) for i in front}
    assert len(kept) == len(front), "of exact ties, one"
    undominated = {
        (c, q)
        for c, q in zip(cost, quality, strict=True)
        if np.isfinite(q)
        and not any(
            (c2 <= c and q2 >= q) and (c2 < c or q2 > q)
            for c2, q2 in zip(cost, quality, strict=True)
        )
    }
    assert kept == undominated


# Use cases


@pytest.mark.parametrize("name", use_case_ids())
def test_use_cases_load(name: str) -> None:
    case = load_use_case(name)
    assert sum(case.task_weights.values()) == pytest.approx(1.0)
    assert case.question.endswith("?")


def test_strict_floors_are_for_those_who_need_every_answer() -> None:
    levels = {name: load_use_case(name).floor.level for name in use_case_ids()}
    assert levels["rag"] == levels["general"] == 0.8
    assert levels["throughput"] == 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"retention_floor": -0.1}, "floor retention"),
        ({"floor_level": 1.0}, "floor level"),
        ({"concurrency": 0}, "concurrency"),
        ({"ttft_s": -1.0}, "ttft_s"),
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"tolerance_points": -1.0}, "tolerance_points"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_use_case("rag").changed(**change)


def test_an_unknown_use_case_lists_the_known() -> None:
    with pytest.raises(UnknownName, match="streaming"):
        load_use_case("chat")


# The rule


def test_rag_does_not_choose_a_model_without_full_layers(
    cost_model: CostModel, task_mix: TaskMix
) -> None:
    found = advise("rag", cost_model, task_mix)
    assert found.winner is not None and not found.winner.candidate.is_pure
    assert pure_eligible(found) == set()


def test_without_a_floor_they_become_eligible(cost_model: CostModel, task_mix: TaskMix) -> None:
    found = advise(load_use_case("rag").changed(retention_floor=0), cost_model, task_mix)
    assert {"sliding_window", "linear_attention", "gated_deltanet"} <= pure_eligible(found)


def test_the_evidence_decides_not_a_rule(cost_model: CostModel, store: Store) -> None:
    """With pure-linear rows at parity, pure linear models meet the floor of RAG."""
    rows = store.comparisons()
    pure = (rows["n_full"] == 0) & rows["kind"].eq("recurrent")
    assert pure.sum() > 50
    rows.loc[pure, "value"] = rows.loc[pure, "control_value"]
    changed = TaskMix(model=QualityModel.fit(rows))
    assert "gated_deltanet" in pure_eligible(advise("rag", cost_model, changed))


def test_streaming_keeps_a_constant_memory_or_names_both_limits(
    cost_model: CostModel, task_mix: TaskMix
) -> None:
    found = advise("streaming", cost_model, task_mix)
    if found.winner is None:
        assert {"kv_slope", "floor"} <= set(found.rejected_by())
    else:
        context = found.use_case.traffic.context
        assert found.winner.candidate.arch.kv_slope_bytes(context) == 0


def test_what_nothing_covers_meets_no_floor(cost_model: CostModel, task_mix: TaskMix) -> None:
    found = advise("summarization", cost_model, task_mix)
    for e in found.evaluated:
        floor = next(v for v in e.verdicts if v.constraint == "floor")
        assert e.quality.covered or not floor.ok


def test_nothing_feasible_says_which_limits_bind(cost_model: CostModel, task_mix: TaskMix) -> None:
    case = load_use_case("rag").changed(ttft_s=1e-6)
    found = advise(case, cost_model, task_mix)
    assert found.winner is None and found.runner_up is None
    said = [r.text for r in found.reasons]
    assert any(text.startswith("ttft rejects") and "nearest" in text for text in said)


def test_a_shortage_says_what_runs_out() -> None:
    gib = 2.0**30
    one = Memory(
        batch_size=1, context=4096, weights=90 * gib, kv_cache=2 * gib, state=0.0,
        workspace=gib, capacity=72 * gib,
    )  # fmt: skip
    assert shortage_text(one).startswith("weights of 90.00 GiB against 72.00 GiB usable")
    sequence = replace(one, weights=70 * gib)
    assert shortage_text(sequence).startswith(
        "73.00 GiB with one sequence of 4,096 tokens against 72.00 GiB"
    )
    assert "pools" in shortage_text(replace(one, weights=60 * gib, kv_limit=gib))


def test_without_a_baseline_that_fits_costs_are_told_in_seconds(
    cost_model: CostModel, task_mix: TaskMix
) -> None:
    """No session of full attention fits: there is no ratio to it, but cheap and dear remain."""
    case = load_use_case("summarization").changed(prompt_tokens=1_000_000)
    found = advise(case, cost_model, task_mix)
    assert found.baseline.cost.batch_size == 0 and found.winner is not None
    seconds = [e.cost.gpu_seconds_per_request for e in found.tied]
    assert found.winner.cost.gpu_seconds_per_request == min(seconds)
    said = " ".join(r.text for r in found.reasons)
    assert "no sequence of full attention fits" in said and "n/a" not in said and "nan" not in said
    assert found.winner.cost_text.endswith(" s")


@pytest.mark.parametrize("use_case", use_case_ids())
def test_every_reason_has_its_basis_and_source(
    cost_model: CostModel, task_mix: TaskMix, use_case: str
) -> None:
    found = advise(use_case, cost_model, task_mix)
    assert found.reasons
    for reason in found.reasons:
        assert reason.text and reason.basis and reason.source
    assert any(any(ch.isdigit() for ch in r.text) for r in found.reasons)


def test_a_ratio_without_rows_does_not_win_on_cost(
    cost_model: CostModel, task_mix: TaskMix
) -> None:
    found = advise("throughput", cost_model, task_mix)
    bare = [replace(e, has_ratio_rows=e.candidate.is_baseline) for e in found.evaluated]
    winner, _, _ = choose(bare, found.use_case)
    assert winner is not None and winner.candidate.is_baseline


def test_a_mixer_judged_by_others_does_not_win_on_cost(
    cost_model: CostModel, task_mix: TaskMix
) -> None:
    found = advise("summarization", cost_model, task_mix)
    assert found.winner is not None and found.winner.has_own_rows
    cheaper = judged_by_others(found.evaluated, found.winner)
    assert cheaper and all(e.cost_ratio < found.winner.cost_ratio for e in cheaper)
    assert any(cheaper[0].candidate.label in note for note in found.notes)
    names = {e.candidate.mixer for e in cheaper}
    others = [e for e in found.evaluated if e.candidate.mixer in names]
    winner, _, _ = choose(others, found.use_case)
    assert winner is not None and winner.candidate.mixer in names


def test_a_higher_floor_never_admits_more(cost_model: CostModel, task_mix: TaskMix) -> None:
    def feasible(retention: float) -> set[str]:
        case = replace(load_use_case("throughput"), floor=Floor(retention=retention, level=0.5))
        found = advise(case, cost_model, task_mix)
        return {e.candidate.label for e in found.evaluated if e.feasible}

    assert feasible(0.99) <= feasible(0.9) <= feasible(0.5) <= feasible(0.0)


def test_the_winner_is_uniform_and_says_it_is_convention(
    cost_model: CostModel, task_mix: TaskMix
) -> None:
    found = advise(load_use_case("throughput"), cost_model, task_mix)
    assert found.winner is not None and found.winner.candidate.placement == "uniform"
    if not found.winner.candidate.is_baseline and not found.winner.candidate.is_pure:
        assert any("by convention" in r.text for r in found.reasons)


def test_a_session_is_told_in_the_stored_dtypes(cost_model: CostModel, task_mix: TaskMix) -> None:
    fp8 = CostModel(cost_model.kernels, replace(cost_model.deployment, kv_dtype="fp8"))
    found = advise("rag", fp8, task_mix)
    assert found.winner is not None and found.winner.candidate.is_baseline
    assert "the next token adds 65,536 bytes" in session_text(found.winner)


def test_a_deployed_hybrid_is_not_said_to_be_all_alike(
    cost_model: CostModel, task_mix: TaskMix
) -> None:
    found = recommend(
        load_use_case("rag"), model=load_model("qwen3.6-27b"), intent="deploy",
        cost_model=cost_model, task_mix=task_mix,
    )  # fmt: skip
    assert not any("alike" in r.text for r in found.reasons)
    assert any("counts as 100 %" in note for note in found.notes)


@pytest.mark.parametrize(("prompt", "said"), [(8192, True), (4096, False)])
def test_a_prompt_beyond_the_models_context_is_said(
    prompt: int, said: bool, cost_model: CostModel, task_mix: TaskMix
) -> None:
    """Llama 3's is 8,192; the output counts."""
    case = load_use_case("rag")
    case = replace(case, traffic=replace(case.traffic, prompt_tokens=prompt))
    found = recommend(
        case, model=load_model("llama-3-70b"), intent="deploy",
        cost_model=cost_model, task_mix=task_mix,
    )  # fmt: skip
    assert any("beyond the model's context of 8,192" in note for note in found.notes) is said


def test_a_probability_that_misses_does_not_look_met() -> None:
    assert [probability_text(p, 0.8) for p in (0.8, 0.79, 0.7962, 0.79999)] == [
        "0.80", "0.79", "0.796", "0.79999",
    ]  # fmt: skip


def test_what_the_evidence_does_not_cover_is_not_on_the_frontier(
    cost_model: CostModel, task_mix: TaskMix
) -> None:
    found = advise("throughput", cost_model, task_mix)
    assert all(e.quality.covered for e in found.evaluated if e.on_frontier)
    for design in designs_of(found):
        assert (design.accuracy_kept == design.accuracy_kept) or design.evidence == "none"
