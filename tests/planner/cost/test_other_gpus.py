"""Other GPUs: times carried over from a measured one, and how wrong that is.

Every device of the imported tables is predicted from each other one. The figures are printed;
`pytest -s` shows them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from itertools import permutations

import numpy as np
import pytest

from planner.catalog import load_hardware, load_model, model_ids
from planner.cost.analytic import analytic_times, kind_of
from planner.cost.basis import Basis
from planner.cost.curves import Floats
from planner.cost.donor import CARRIED, carried_half_width, distance, is_same_die
from planner.cost.kernel import KernelCost
from planner.cost.model import CostModel, Deployment
from planner.cost.observations import Observation
from planner.decision.advisor import Advisor
from planner.hardware import Hardware
from planner.store import Store
from planner.workload import MixerOp, Op, StackOp, Traffic

SYSTEMS = {
    "a100-80g-sxm": "a100_sxm",
    "h100-sxm": "h100_sxm",
    "h200-sxm": "h200_sxm",
    "b200-sxm": "b200_sxm",
}
PAIRS = list(permutations(SYSTEMS, 2))
Imported = Callable[[str], list[Observation]]

A100, H100, H200, B200, L40S, RTX_4090 = (
    load_hardware(id) for id in (*SYSTEMS, "l40s", "rtx-4090")
)
LLAMA = load_model("llama-3.1-8b")


@pytest.fixture(scope="module")
def fits(imported: Imported) -> dict[str, KernelCost]:
    return {
        id: KernelCost.fit(imported(system), load_hardware(id)) for id, system in SYSTEMS.items()
    }


def borrowing(here: Hardware, *donors: KernelCost) -> CostModel:
    kernels = KernelCost.fit([], here, donors=lambda: donors)
    return CostModel(kernels, Deployment(hardware=here, mode="graph"))


# Who lends


def test_the_nearest_device_is_near_in_bandwidth_and_arithmetic() -> None:
    def nearest(here: Hardware) -> str:
        others = [h for h in (A100, H100, H200, B200) if h != here]
        return min(others, key=lambda h: distance(h, here)).id

    assert [nearest(h) for h in (A100, H100, H200, B200)] == [
        "h100-sxm", "h200-sxm", "h100-sxm", "h200-sxm",
    ]  # fmt: skip
    assert nearest(L40S) == nearest(RTX_4090) == "a100-80g-sxm"


def test_the_same_die_with_other_memory_is_known_as_such() -> None:
    assert is_same_die(H100, H200)
    assert not is_same_die(H100, B200) and not is_same_die(A100, L40S)


def test_a_donor_is_asked_only_where_nothing_was_measured(imported: Imported) -> None:
    def nobody() -> Iterator[KernelCost]:
        raise AssertionError("asked for a donor")
        yield

    kernels = KernelCost.fit(imported("h200_sxm"), H200, donors=nobody)
    cost = CostModel(kernels, Deployment(hardware=H200, mode="graph"))
    assert cost.estimate(LLAMA, Traffic(prompt_tokens=4096, output_tokens=128)).tpot_s > 0


@pytest.mark.parametrize("here", [L40S, RTX_4090], ids=lambda h: h.id)
def test_a_device_that_nobody_measured_is_scaled_and_says_from_which(
    here: Hardware, fits: dict[str, KernelCost]
) -> None:
    cost = borrowing(here, fits["a100-80g-sxm"], fits["h100-sxm"])
    hybrid = LLAMA.with_mixer("gated_deltanet", "3:1")
    found = cost.estimate(hybrid, Traffic(prompt_tokens=8192, output_tokens=256))
    parts = [p for p in (*found.prefill.parts, *found.decode.parts) if p.role != "elementwise"]
    for part in parts:
        assert Basis.SCALED <= part.basis <= Basis.EXTRAPOLATED
        assert part.provider.endswith((" on " + A100.name, " on " + H100.name))
        # the low end may be the roofline
        assert part.low < part.seconds and part.high > 1.1 * part.seconds
    # the A100's tables have no Gated DeltaNet: the next device lends it
    mixers = {p.name: p.provider for p in found.prefill.parts if p.role == "mixer"}
    assert mixers["gated_deltanet"].endswith(H100.name)
    assert mixers["full_attention"].endswith(A100.name)


def test_a_mixer_that_no_device_measured_stays_analytic(fits: dict[str, KernelCost]) -> None:
    cost = borrowing(L40S, *fits.values())
    found = cost.phase(LLAMA.with_mixer("mamba2", "3:1"), 1, 4096, 0)
    assert {p.name: p.basis for p in found.parts if p.role == "mixer"}["mamba2"] == Basis.ANALYTIC
    assert found.basis == Basis.ANALYTIC


@pytest.mark.parametrize("outcome", ["out_of_memory", "unsupported"])
def test_what_did_not_run_on_one_device_is_taken_from_the_next(
    outcome: str, fits: dict[str, KernelCost]
) -> None:
    op = MixerOp(LLAMA.full_spec())
    points = [
        Observation(
            op=op, provider="small", mode="graph", cache_state="warm", dtype="bf16",
            training=False, batch_size=1, new_tokens=tokens, cached_tokens=0,
            outcome="ok" if seconds else outcome, latency_s=seconds or np.nan, noise=0.01,
            device="rtx-4090", key=str(tokens),
        )
        for tokens, seconds in ((1024, 1e-3), (4096, 1e-2), (16384, None))
    ]  # fmt: skip
    small = KernelCost.fit(points, RTX_4090)
    lengths = [4096, 16384]
    assert small.predict(op, 1, lengths, 0, dtype="bf16").outcome.tolist() == ["ok", outcome]
    for others, by in (([fits["h100-sxm"]], f" on {H100.name}"), ([], "analytic")):
        here = KernelCost.fit([], L40S, donors=lambda others=others: [small, *others])
        found = here.predict(op, 1, lengths, 0, dtype="bf16")
        assert found.outcome.tolist() == ["ok", "ok"]
        assert found.provider[0] == f"small on {RTX_4090.name}"
        assert found.provider[1].endswith(by)
        one = here.predict_one(op, 1, 16384, 0, dtype="bf16")
        assert (one.outcome, one.latency_s) == ("ok", pytest.approx(found.latency_s[1]))


# How wrong


def best_times(points: list[Observation]) -> dict[Op, dict[str, Floats]]:
    """Per operation and phase, rows (batch, new, cached, seconds) of its fastest provider."""
    least: dict[tuple[Op, str, int, int, int], float] = {}
    for o in points:
        if not o.flagged and o.mode == "graph":
            key = (o.op, o.phase, o.batch_size, o.new_tokens, o.cached_tokens)
            least[key] = min(o.latency_s, least.get(key, np.inf))
    rows: dict[Op, dict[str, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    for (op, phase, *at), seconds in least.items():
        rows[op][phase].append((*at, seconds))
    return {op: {p: np.array(r) for p, r in by.items()} for op, by in rows.items()}


@pytest.mark.slow
def test_widths_are_those_of_each_device_from_each_other_one(
    fits: dict[str, KernelCost], imported: Imported
) -> None:
    graph_only = {
        id: KernelCost.fit([o for o in imported(s) if o.mode == "graph"], load_hardware(id))
        for id, s in SYSTEMS.items()
    }
    truth = cache(lambda id: best_times(imported(SYSTEMS[id])))
    errors: dict[tuple[str, str, bool], list[Floats]] = defaultdict(list)
    for donor_id, id in PAIRS:
        donor, here = graph_only[donor_id], load_hardware(id)
        found: dict[tuple[str, str], list[Floats]] = defaultdict(list)
        for op, by_phase in truth(id).items():
            for phase, rows in by_phase.items():
                if not donor.providers(op, phase=phase, dtype="bf16"):
                    continue
                b, n, c = (rows[:, i].astype(np.int64) for i in range(3))
                there = donor.predict(op, b, n, c, dtype="bf16").latency_s
                ratio = [
                    analytic_times(op, phase, b, n, c, dtype="bf16", hardware=h).log_s
                    for h in (here, donor.hardware)
                ]
                error = np.log(there / rows[:, 3]) + ratio[0] - ratio[1]
                found[kind_of(op), phase].append(error[np.isfinite(error)])
        for use, parts in found.items():
            errors[(*use, is_same_die(here, donor.hardware))].append(np.concatenate(parts))
    for (kind, phase, same), pairs in sorted(errors.items()):
        size = np.abs(np.concatenate(pairs))
        weight = np.concatenate([np.full(len(p), 1 / len(p)) for p in pairs])
        order = np.argsort(size)
        p80 = size[order][np.searchsorted(np.cumsum(weight[order]) / weight.sum(), 0.8)]
        die = "same die" if same else "another die"
        print(f"{kind:18} {phase:8} {die:12} {len(pairs):2} pairs {len(size):6} calls: {p80:.2f}")
        assert p80 == pytest.approx(CARRIED[kind, phase][0 if same else 1], abs=0.02)


@pytest.mark.slow
def test_whole_models_carried_over_are_inside_their_intervals(
    fits: dict[str, KernelCost],
) -> None:
    """Each device's own imported rows against the same model borrowed from each other device."""
    inside: dict[str, list[bool]] = defaultdict(list)
    errors: dict[str, list[float]] = defaultdict(list)
    for donor, id in PAIRS:
        here = load_hardware(id)
        own = CostModel(fits[id], Deployment(hardware=here, mode="graph"))
        borrowed = borrowing(here, fits[donor])
        for model in model_ids():
            for at in ((1, 4096, 0), (1, 16384, 0), (1, 1, 8192), (16, 1, 8192), (64, 1, 4096)):
                known = own.phase(load_model(model), *at)
                found = borrowed.phase(load_model(model), *at)
                if Basis.ANALYTIC in (known.basis, found.basis):
                    continue
                phase = "decode" if at[1] == 1 else "prefill"
                inside[phase].append(found.low <= known.seconds <= found.high)
                errors[phase].append(abs(found.seconds / known.seconds - 1))
    for phase, covered in inside.items():
        print(
            f"{phase}: {len(covered)} models on 12 pairs, median error "
            f"{np.median(errors[phase]):.1%}, inside the 80 % interval {np.mean(covered):.0%}"
        )
        assert len(covered) >= 200
        assert np.mean(covered) >= 0.75


def test_kernels_measured_here_carry_over_within_widths_learnt_from_others_tables() -> None:
    """The project's own points of H200 and H100, the same provider on both: the widths were taken
    from imported tables before the H100's existed."""
    advisor = Advisor(Store.open("sqlite:///:memory:"))

    def own(device_id: str) -> dict[tuple[object, ...], Observation]:
        return {
            (o.op, o.provider, o.phase, o.batch_size, o.new_tokens, o.cached_tokens): o
            for o in advisor.observations(advisor.device(device_id))
            if (o.mode, o.cache_state, o.outcome) == ("graph", "cold", "ok")
            and not o.imported
            and not isinstance(o.op, StackOp)
        }

    there, errors = own("h200-sxm"), defaultdict(list)
    for key, here in own("h100-sxm").items():
        if key not in there:
            continue
        at = (np.array([n]) for n in (here.batch_size, here.new_tokens, here.cached_tokens))
        b, n, c = at
        at_h100, at_h200 = (
            float(analytic_times(here.op, here.phase, b, n, c, dtype="bf16", hardware=h).log_s[0])
            for h in (H100, H200)
        )
        error = np.log(there[key].latency_s / here.latency_s) + at_h100 - at_h200
        errors[kind_of(here.op), here.phase].append(error)
    inside: list[bool] = []
    for (kind, phase), found in sorted(errors.items()):
        size, width = np.abs(found), CARRIED[kind, phase][0]
        inside += (size <= width).tolist()
        print(
            f"{kind:18} {phase:8} {len(size):4} calls: 80 % within {np.quantile(size, 0.8):.2f}, "
            f"width {width:.2f}, inside {np.mean(size <= width):.0%}"
        )
    print(f"all {len(inside)}: inside {np.mean(inside):.0%}")
    assert len(inside) >= 500 and 0.7 <= np.mean(inside) <= 0.95


def test_widths_are_taken_by_kind_phase_and_die() -> None:
    op = MixerOp(LLAMA.full_spec())
    assert carried_half_width(op, "decode", H100, H200) == CARRIED["full", "decode"][0]
    assert carried_half_width(op, "decode", L40S, A100) == CARRIED["full", "decode"][1]
    assert carried_half_width(op, "training", L40S, A100) == CARRIED["full", "prefill"][1]
