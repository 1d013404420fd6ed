"""Advisor: from the shipped store to costs of devices that were measured, imported or neither."""

from __future__ import annotations

import pytest

from planner.catalog import load_model, model_ids
from planner.cost.analytic import bound_s
from planner.cost.basis import Basis
from planner.cost.calls import calls
from planner.cost.model import ModelCost
from planner.decision.advisor import Advisor
from planner.errors import UsageError
from planner.store import Environment, Outcome, Point, Store
from planner.workload import MixerOp, Traffic, Workload

LLAMA = load_model("llama-3.1-8b")
CHAT = Traffic(prompt_tokens=8192, output_tokens=512, concurrency=8)


@pytest.fixture(scope="module")
def advisor() -> Advisor:
    return Advisor(Store.open("sqlite:///:memory:"))


def providers(cost: ModelCost) -> set[str]:
    parts = (*cost.prefill.parts, *cost.decode.parts)
    return {p.provider for p in parts if p.role != "elementwise"}


def test_a_measured_gpu_rests_on_its_own_points(advisor: Advisor) -> None:
    cost = advisor.cost_model("h200-sxm").estimate(LLAMA, CHAT)
    assert providers(cost) <= {"sdpa_cudnn", "sdpa_flash", "triton", "torch"}
    assert "launch" not in cost.decode.by_role()


def test_a_provider_of_others_answers_when_it_is_asked_for(advisor: Advisor) -> None:
    asked = {"full_attention": "vllm_fa3@0.24"}
    cost = advisor.cost_model("h200-sxm", providers=asked).estimate(LLAMA, CHAT)
    assert "vllm_fa3@0.24" in providers(cost)


def test_eager_mode_adds_launches_from_calls_measured_in_both_modes(advisor: Advisor) -> None:
    graph, eager = (
        advisor.cost_model("h200-sxm", mode=mode).estimate(LLAMA, CHAT)
        for mode in ("graph", "eager")
    )
    (launch,) = (p for p in eager.decode.parts if p.role == "launch")
    assert launch.basis == Basis.SCALED
    assert eager.tpot_s == pytest.approx(graph.tpot_s + launch.seconds)


def test_all_reduces_are_the_imported_ones(advisor: Advisor) -> None:
    cost = advisor.cost_model("h200-sxm", tensor_parallel=4).estimate(LLAMA, CHAT)
    (reduced,) = (p for p in cost.decode.parts if p.role == "all_reduce")
    assert reduced.provider == "vllm_custom@0.24" and reduced.basis <= Basis.INTERPOLATED


@pytest.mark.parametrize("id", ["l40s", "rtx-4090"])
def test_a_gpu_without_rows_is_scaled_from_named_ones(advisor: Advisor, id: str) -> None:
    cost = advisor.cost_model(id).estimate(LLAMA, CHAT)
    assert Basis.SCALED <= cost.basis < Basis.ANALYTIC
    assert all(" on NVIDIA " in name for name in providers(cost))
    assert advisor.device(id).lenders[0] == "a100-80g-sxm"
    assert "a100-80g-sxm" in advisor.device(id).basis_note


def test_an_imported_gpu_borrows_what_was_not_imported(advisor: Advisor) -> None:
    """Nobody's tables hold a scan of Mamba-2; the H100's own points do, the next most alike."""
    cost = advisor.cost_model("a100-80g-sxm").estimate(LLAMA.with_mixer("mamba2", "3:1"), CHAT)
    mixers = {p.name: p for p in cost.prefill.parts if p.role == "mixer"}
    assert mixers["full_attention"].provider == "vllm_flash_attn@0.14"
    assert mixers["mamba2"].provider.endswith("on NVIDIA H100 SXM 80 GB")
    assert mixers["mamba2"].basis >= Basis.SCALED


def test_a_cpu_neither_borrows_from_gpus_nor_lends_to_them(store_with_cpu: Advisor) -> None:
    cpu = store_with_cpu.device("some-cpu")
    assert not cpu.is_gpu and not cpu.lenders
    assert all("some-cpu" not in d.lenders for d in store_with_cpu.devices.values())
    found = store_with_cpu.cost_model("some-cpu").phase(LLAMA, 1, 1024, 0)
    assert found.basis == Basis.ANALYTIC


@pytest.fixture
def store_with_cpu() -> Advisor:
    store = Store.open("sqlite:///:memory:")
    environment = Environment(
        device="Some CPU",
        device_kind="cpu",
        versions={"torch": "2.13"},
        facts={
            "ceilings": {"dtype": "fp32", "flops": 1e12, "bandwidth": 5e10},
            "memory_bytes": 64 << 30,
        },
    )
    store.add_environment(environment)
    op = MixerOp(LLAMA.full_spec())
    store.record(
        Point(
            workload=Workload(op=op, batch_size=1, new_tokens=1024, dtype="fp32"),
            provider="reference",
            environment_id=environment.id,
            outcome=Outcome.OK,
            mode="eager",
            samples_s=(0.1, 0.1, 0.1),
        )
    )
    return Advisor(store)


def test_the_mode_is_graph_or_eager(advisor: Advisor) -> None:
    with pytest.raises(UsageError, match="graph or eager"):
        advisor.cost_model("h200-sxm", mode="lazy")


def test_asked_again_the_answer_is_the_same(advisor: Advisor) -> None:
    """Fits are kept: a second cost model and a second advisor say the same, to the last digit."""
    again = Advisor(advisor.store)
    arch = LLAMA.with_mixer("gated_deltanet", "3:1")
    one = advisor.cost_model("h200-sxm").estimate(arch, CHAT)
    other = again.cost_model("h200-sxm").estimate(arch, CHAT)
    assert one.prefill == other.prefill and one.decode == other.decode


@pytest.mark.slow
@pytest.mark.parametrize("id", ["h200-sxm", "a100-80g-sxm", "l40s"])
@pytest.mark.parametrize("degree", [1, 8])
def test_no_part_of_any_model_outruns_the_device(advisor: Advisor, id: str, degree: int) -> None:
    """Far beyond the points too: what is scaled or continued is never below the roofline."""
    model = advisor.cost_model(id, tensor_parallel=degree)
    prefills = (1, 128, 0), (1, 1 << 20, 0), (1, 512, 8192)
    passes = (*prefills, (1, 1, 1), (37, 1, 9000), (1024, 1, 2048))
    for name in model_ids():
        arch = load_model(name)
        try:
            every = calls(arch, degree)
        except UsageError:
            continue
        for at in passes:
            found = model.phase(arch, *at)
            for call, part in zip(every, found.parts, strict=False):
                where = call.at(*at, arch.hidden_size)
                hardware = model.deployment.hardware
                bound = call.count * bound_s(call.op, *where, dtype="bf16", hardware=hardware)
                if part.basis >= Basis.SCALED and call.role != "all_reduce":
                    assert part.low >= bound * (1 - 1e-9), (name, at, part)
                assert 0 < part.low <= part.seconds <= part.high, (name, at, part)
                assert part.high < 1000 * part.low, (name, at, part)
