"""What to measure next: bends, crossovers, and what is left out beyond the usual lengths."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from planner.mixers import MixerSpec, get_mixer
from planner.store import Environment, Outcome, Point, Store
from planner.workload import MixerOp, Workload
from profiler.choice import Curves, bend, changes_places, expected_seconds, long_enough
from profiler.choice import most_informative as choose
from profiler.plan import Cell, PlannedJob
from profiler.protocol import Job

FULL = MixerSpec(
    mixer="full_attention",
    num_q_heads=32,
    num_k_heads=8,
    num_v_heads=8,
    k_head_dim=128,
    v_head_dim=128,
)
GDN = get_mixer("gated_deltanet").matched(FULL, 4096)
DEVICE = Environment(device="x", device_kind="cpu", versions={})
Times = dict[tuple[MixerSpec, str, int], float]


def workload(spec: MixerSpec, tokens: int) -> Workload:
    return Workload(op=MixerOp(spec), batch_size=1, new_tokens=tokens)


def planned(spec: MixerSpec, provider: str, tokens: int) -> PlannedJob:
    job = Job(workload=workload(spec, tokens), provider=provider)
    return PlannedJob(job=job, cells=(Cell("graph", "cold"),), level=2)


def points(times: Times) -> pd.DataFrame:
    store = Store.open("sqlite:///:memory:", shipped=False)
    store.add_environment(DEVICE)
    for (spec, provider, tokens), seconds in times.items():
        store.record(
            Point(
                workload=workload(spec, tokens),
                provider=provider,
                environment_id=DEVICE.id,
                outcome=Outcome.OK,
                samples_s=[seconds] * 3,
            )
        )
    found = store.points()
    store.close()
    return found


def test_a_bend_is_half_the_change_of_slope_times_the_distance() -> None:
    curve = [(0.0, 0.0), (1.0, 1.0), (3.0, 5.0)]
    assert bend(curve, 2.0) == pytest.approx((2 - 1) * 1 / 2)
    assert bend(curve, 0.5) == pytest.approx((2 - 1) * 0.5 / 2)
    assert bend([(0.0, 0.0), (1.0, 2.0), (2.0, 4.0)], 1.5) == 0.0
    assert bend(curve, 7.0) == 0.0 and bend([(0.0, 0.0)], 0.0) == 0.0


def test_places_change_where_the_sign_of_the_difference_does() -> None:
    full, linear = {0.0: 0.0, 1.0: 2.0, 2.0: 4.0}, {0.0: 1.0, 1.0: 1.5, 2.0: 2.0}
    assert changes_places(full, linear, 0.5)
    assert not changes_places(full, linear, 1.5)
    assert not changes_places(full, linear, 3.0)


def test_the_crossover_comes_first_then_the_bend_then_straight_lines() -> None:
    """Full attention and GDN cross between 4k and 32k; cuDNN bends there, GDN is straight."""
    times: Times = {}
    for tokens in (1024, 4096, 32768, 131072):
        times[FULL, "sdpa_cudnn", tokens] = 1e-4 * max(1.0, (tokens / 8192) ** 2)
        times[GDN, "fla", tokens] = 3e-4 * (tokens / 8192) ** 0.5
    curves = Curves(points(times))
    lengths = (2048, 8192, 65536)
    jobs = [planned(GDN, "fla", n) for n in lengths] + [
        planned(FULL, "sdpa_cudnn", n) for n in lengths
    ]
    order = [(p.job.provider, p.job.workload.new_tokens) for p in choose(jobs, curves)]
    assert order[:2] == [("sdpa_cudnn", 8192), ("fla", 8192)]
    assert order[-1][0] == "fla"


def test_providers_of_a_workload_stay_together() -> None:
    times: Times = {(FULL, "sdpa_cudnn", n): 1e-3 for n in (1024, 4096, 16384)}
    jobs = [planned(FULL, p, n) for n in (2048, 8192) for p in ("sdpa_cudnn", "sdpa_flash")]
    order = [p.job.workload.new_tokens for p in choose(jobs, Curves(points(times)))]
    assert order in ([2048, 2048, 8192, 8192], [8192, 8192, 2048, 2048])


class TestLong:
    """Beyond the usual lengths: two fastest providers, and a cap."""

    TIMES: Times = {
        (FULL, "sdpa_cudnn", 131072): 0.25,
        (FULL, "sdpa_flash", 131072): 0.40,
        (FULL, "flex", 131072): 0.50,
        (FULL, "triton", 65536): 0.01,
    }

    def left_out(self, cap_s: float, tokens: int = 1 << 20) -> dict[str, str]:
        names = ("sdpa_cudnn", "sdpa_flash", "flex", "triton", "sdpa_math")
        jobs = [replace(planned(FULL, name, tokens), long=True) for name in names]
        kept, skipped = long_enough(jobs, Curves(points(self.TIMES)), cap_s)
        assert all(s.failed.outcome is Outcome.SKIPPED for s in skipped)
        assert {p.job for p in kept} | {s.planned.job for s in skipped} == {p.job for p in jobs}
        return {s.planned.job.provider: s.failed.reason for s in skipped}

    def test_only_the_two_fastest_at_the_longest_usual_length(self) -> None:
        why = self.left_out(1e4)
        assert set(why) == {"flex", "triton", "sdpa_math"}
        assert why["flex"] == ("not among the 2 fastest at 128k tokens (sdpa_cudnn, sdpa_flash)")
        assert why["sdpa_math"] == "no time at the usual lengths to judge it by"

    def test_a_run_that_goes_on_keeps_the_second_fastest(self) -> None:
        """Cut short after the first provider's 256k: all are still judged at 128k."""
        times: Times = {**self.TIMES, (FULL, "sdpa_cudnn", 1 << 18): 1.0}
        jobs = [planned(FULL, name, 1 << 19) for name in ("sdpa_cudnn", "sdpa_flash", "flex")]
        kept, skipped = long_enough(jobs, Curves(points(times)), 1e4)
        assert [p.job.provider for p in kept] == ["sdpa_cudnn", "sdpa_flash"]
        assert "at 128k tokens" in skipped[0].failed.reason

    def test_the_cap_counts_all_calls_a_point_needs(self) -> None:
        """Eight times the tokens are 64 times the pairs: 16 s a call, 96 s for six."""
        assert "sdpa_cudnn" not in self.left_out(97)
        assert self.left_out(95)["sdpa_cudnn"].startswith("about 16 s a call, 6 calls: over")

    def test_growth_is_that_of_the_work(self) -> None:
        long = workload(FULL, 1 << 20)
        assert expected_seconds(long, math.log(1 << 17), math.log(0.25)) == pytest.approx(16, 1e-4)
        linear = workload(GDN, 1 << 20)
        assert expected_seconds(linear, math.log(1 << 17), 0.0) == pytest.approx(8, 1e-3)
