"""What is read out of measured points: findings, changes, crossovers, adding up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from planner.catalog import load_hardware
from planner.mixers import MixerSpec, get_mixer
from planner.store import Environment, Outcome, Point, Store
from planner.workload import MixerOp, Op, Workload
from profiler.check import HEAVY_METHOD_VERSION as HEAVY
from profiler.check import check, doubtful
from profiler.compare import (
    compare,
    crossing,
    crossovers,
    measured_in_both,
    ratio_interval,
    repeatability,
)
from profiler.draw import moved_by, moved_text
from profiler.measure.timing import HEAVY_METHOD_VERSION

FULL = MixerSpec(
    mixer="full_attention",
    num_q_heads=32,
    num_k_heads=8,
    num_v_heads=8,
    k_head_dim=128,
    v_head_dim=128,
)
GDN = get_mixer("gated_deltanet").matched(FULL, 4096)
WINDOW = replace(FULL, mixer="sliding_window", window=1024)
H200 = Environment(device="NVIDIA H200", device_kind="cuda", versions={"torch": "2.11"})


class Points:
    """A store that fills with points of given seconds."""

    def __init__(self) -> None:
        self.store = Store.open("sqlite:///:memory:", shipped=False)
        self.store.add_environment(H200)

    def add(
        self,
        op: Op,
        tokens: int,
        seconds: float,
        *,
        cached: int = 0,
        noise: float = 0.001,
        provider: str = "p",
        environment: Environment = H200,
        **changes: object,
    ) -> None:
        workload = Workload(
            op=op, batch_size=1, new_tokens=tokens, cached_tokens=cached, dtype="bf16"
        )
        samples = seconds * (1 + noise * np.linspace(-1, 1, 21))
        point = Point(
            workload=workload,
            provider=provider,
            environment_id=environment.id,
            outcome=Outcome.OK,
            mode="graph",
            samples_s=list(samples),
        )
        self.store.add_environment(environment)
        self.store.record(replace(point, **changes))  # type: ignore[arg-type]

    @property
    def frame(self) -> pd.DataFrame:
        return self.store.points()

    def rules(self) -> list[str]:
        return [f.rule for f in check(self.frame, {H200.id: load_hardware("h200-sxm")})]


@pytest.fixture
def points() -> Iterator[Points]:
    made = Points()
    yield made
    made.store.close()


class TestCheck:
    def test_sound_points_raise_nothing(self, points: Points) -> None:
        for tokens in (1024, 2048, 4096):
            points.add(MixerOp(FULL), tokens, 1e-3 * (tokens / 1024) ** 2)
            points.add(MixerOp(WINDOW), tokens, 0.9e-3 * tokens / 1024)
        assert points.rules() == []

    def test_a_wide_spread(self, points: Points) -> None:
        points.add(MixerOp(FULL), 4096, 1e-3, noise=0.2)
        assert points.rules() == ["spread"]

    def test_a_turn_unlike_the_other(self, points: Points) -> None:
        """Half the distance from p20 to p80 is 4 %, less than a spread."""
        points.add(MixerOp(FULL), 4096, 1e-3, samples_s=[1e-3] * 10 + [1.08e-3] * 10)
        assert points.rules() == ["turns"]
        assert HEAVY == HEAVY_METHOD_VERSION
        assert doubtful(points.frame) == set(points.frame[points.frame["new_tokens"] == 4096].key)

    def test_a_longer_call_that_takes_less(self, points: Points) -> None:
        points.add(MixerOp(FULL), 1024, 2e-3)
        points.add(MixerOp(FULL), 2048, 1e-3)
        assert points.rules() == ["monotone"]

    def test_a_segment_is_longer_than_one_after_fewer_tokens_not_than_a_long_prefill(
        self, points: Points
    ) -> None:
        points.add(MixerOp(FULL), 2048, 9e-3, cached=129024)
        points.add(MixerOp(FULL), 4096, 1e-3)
        assert points.rules() == []
        points.add(MixerOp(FULL), 2048, 10e-3, cached=2048)
        assert points.rules() == ["monotone"]

    def test_a_longer_call_within_the_spread_of_a_shorter_one(self, points: Points) -> None:
        points.add(MixerOp(FULL), 1024, 1.1e-3, noise=0.1)
        points.add(MixerOp(FULL), 2048, 1e-3, noise=0.1)
        assert "monotone" not in points.rules()

    def test_a_window_slower_than_full_attention(self, points: Points) -> None:
        points.add(MixerOp(FULL), 4096, 1e-3)
        points.add(MixerOp(WINDOW), 4096, 2e-3)
        assert points.rules() == ["window"]

    def test_a_window_that_holds_the_whole_context_is_full_attention(self, points: Points) -> None:
        points.add(MixerOp(FULL), 1024, 1e-3)
        points.add(MixerOp(WINDOW), 1024, 2e-3)
        assert points.rules() == []

    def test_a_time_under_the_roofline(self, points: Points) -> None:
        """4·32·128·8192·8193/2 FLOPs at 989 TFLOP/s are 0.56 ms."""
        points.add(MixerOp(FULL), 8192, 0.3e-3)
        assert points.rules() == ["bound"]

    def test_a_small_warm_call_may_be_under_it(self, points: Points) -> None:
        points.add(MixerOp(FULL), 128, 1e-7, cache_state="warm")
        assert points.rules() == []

    def test_repeats_that_disagree(self, points: Points) -> None:
        points.add(MixerOp(FULL), 4096, 1e-3)
        upgraded = replace(H200, versions={"torch": "2.12"})
        points.add(MixerOp(FULL), 4096, 1.3e-3, environment=upgraded)
        assert points.rules() == ["repeats"]

    def test_a_device_that_throttles_for_heat_and_not_one_at_its_power_cap(
        self, points: Points
    ) -> None:
        for tokens, reasons in ((4096, ["power_cap"]), (8192, ["power_cap", "hw_thermal"])):
            points.add(
                MixerOp(FULL),
                tokens,
                1e-3 * (tokens / 4096) ** 2,
                telemetry={"before": {"throttle": []}, "after": {"throttle": reasons}},
            )
        assert points.rules() == ["throttled"]

    def test_a_slow_spell_is_one_finding_about_all_its_points(self, points: Points) -> None:
        for i, flops in enumerate((8e14, 7.9e14, 6e14, 6e14)):
            telemetry = {"reference": {"flops": flops, "bandwidth": 4e12, "dtype": "bf16"}}
            points.add(MixerOp(FULL), 1024 << i, 1e-3 * 4**i, telemetry=telemetry)
        (found,) = check(points.frame, {})
        assert found.rule == "slow spell" and "2 points" in found.what and "75 %" in found.what
        assert len(found.keys) == 2

    def test_doubtful_is_what_another_measurement_may_mend(self, points: Points) -> None:
        points.add(MixerOp(FULL), 4096, 1e-3, noise=0.2)
        points.add(MixerOp(WINDOW), 4096, 2e-3)  # slower than full attention: its kernel is so
        points.add(MixerOp(GDN), 4096, 1e-3)
        assert sorted(points.rules()) == ["spread", "window"]
        wide = points.frame[points.frame["family"] == "full_attention"]
        assert doubtful(points.frame) == set(wide["key"])

    def test_every_finding_ends_in_advice(self, points: Points) -> None:
        points.add(MixerOp(FULL), 4096, 1e-3, noise=0.2)
        (found,) = check(points.frame, {})
        assert found.advice and found.keys == (points.frame["key"].iloc[0],)


class TestCompare:
    def test_only_real_changes_are_significant(self) -> None:
        a, b = Points(), Points()
        for tokens, factor, noise in ((1024, 1.10, 0.01), (2048, 1.0, 0.01), (4096, 1.005, 0.05)):
            a.add(MixerOp(FULL), tokens, 1e-3, noise=noise)
            b.add(MixerOp(FULL), tokens, factor * 1e-3, noise=noise)
        found = compare(a.frame, b.frame).set_index("new_tokens")
        assert found["significant"].to_dict() == {1024: True, 2048: False, 4096: False}
        assert found.loc[1024, "change"] == pytest.approx(0.10)

    def test_the_interval_holds_the_true_ratio(self) -> None:
        rng = np.random.default_rng(3)
        held = 0
        for _ in range(60):
            a, b = rng.lognormal(sigma=0.05, size=30), rng.lognormal(sigma=0.05, size=30)
            low, high = ratio_interval(a.tolist(), (1.2 * b).tolist())
            held += low <= 1.2 <= high
        assert held / 60 > 0.85

    def test_repeatability_is_said_of_points_that_can_repeat(self) -> None:
        a, b = Points(), Points()
        for tokens, seconds, factor in ((64, 1e-6, 3.0), (1024, 1e-3, 1.01), (2048, 2e-3, 0.98)):
            a.add(MixerOp(FULL), tokens, seconds)
            b.add(MixerOp(FULL), tokens, factor * seconds)
        said = repeatability(compare(a.frame, b.frame))
        assert said.startswith("2 graph points of at least 20 µs: half differ by up to 1.5 %, 90")
        assert repeatability(compare(a.frame, b.frame).iloc[:0]) == ""

    def test_eager_points_repeat_apart_from_those_in_graphs(self) -> None:
        a, b = Points(), Points()
        for mode, factor in (("graph", 1.01), ("eager", 1.5)):
            a.add(MixerOp(FULL), 1024, 1e-3, mode=mode)
            b.add(MixerOp(FULL), 1024, factor * 1e-3, mode=mode)
        graph, eager = sorted(repeatability(compare(a.frame, b.frame)).split("; "), reverse=True)
        assert graph.startswith("1 graph point") and "99 % by up to 1.0 %" in graph
        assert eager.startswith("1 eager point") and "99 % by up to 50.0 %" in eager

    def test_crossovers_are_compared_at_the_lengths_of_both(self) -> None:
        """b lacks the lengths in between, where a straight line would cross elsewhere."""
        a, b = Points(), Points()
        for points, lengths in ((a, (1024, 2048, 8192, 16384)), (b, (1024, 16384))):
            for tokens in lengths:
                points.add(MixerOp(FULL), tokens, 1e-3 * (tokens / 4096) ** 2)
                points.add(MixerOp(GDN), tokens, 1e-3 * (tokens / 4096) ** 0.5)
        before, after = map(crossovers, measured_in_both(a.frame, b.frame))
        assert before["crossover_tokens"].tolist() == after["crossover_tokens"].tolist()
        assert measured_in_both(a.frame, a.frame)[0]["key"].tolist() == a.frame["key"].tolist()

    def test_a_new_provider_may_move_a_crossover(self) -> None:
        a, b = Points(), Points()
        for tokens in (1024, 2048, 8192, 16384):
            for points in (a, b):
                points.add(MixerOp(FULL), tokens, 1e-3 * (tokens / 4096) ** 2, provider="old")
                points.add(MixerOp(GDN), tokens, 1e-3 * tokens / 4096)
            b.add(MixerOp(FULL), tokens, 0.5e-3 * (tokens / 4096) ** 2, provider="new")
        before, after = map(crossovers, measured_in_both(a.frame, b.frame))
        assert before["crossover_tokens"].tolist() == pytest.approx([4096])
        assert after["crossover_tokens"].tolist() == pytest.approx([8192])
        assert before["providers"][0].endswith("; old")
        assert moved_by(before["providers"][0], after["providers"][0]).endswith("; new")

    def test_several_environments_are_compared_each_with_itself(self) -> None:
        points = Points()
        upgraded = replace(H200, versions={**H200.versions, "torch": "2.14.0"})
        for environment, seconds in ((H200, 1e-3), (upgraded, 2e-3)):
            points.add(MixerOp(FULL), 1024, seconds, environment=environment)
        found = compare(points.frame, points.frame)
        assert len(found) == 2 and not found["significant"].any()

    def test_points_of_one_side_only_are_left_out(self) -> None:
        a, b = Points(), Points()
        a.add(MixerOp(FULL), 1024, 1e-3)
        b.add(MixerOp(FULL), 2048, 1e-3)
        assert compare(a.frame, b.frame).empty


class TestCrossovers:
    def test_of_a_square_and_a_line(self, points: Points) -> None:
        """n²/4096² against n/4096 ms cross at 4096; measured beside it at 2k and 8k."""
        for tokens in (1024, 2048, 8192, 16384):
            points.add(MixerOp(FULL), tokens, 1e-3 * (tokens / 4096) ** 2)
            points.add(MixerOp(GDN), tokens, 1e-3 * tokens / 4096)
        (row,) = crossovers(points.frame).itertuples()
        assert row.mixer == "gated_deltanet"
        assert row.crossover_tokens == pytest.approx(4096, rel=1e-6)

    def test_the_fastest_provider_counts(self, points: Points) -> None:
        for tokens in (1024, 2048):
            points.add(MixerOp(FULL), tokens, 1e-3, provider="slow")
            points.add(MixerOp(FULL), tokens, 1e-4, provider="fast")
            points.add(MixerOp(GDN), tokens, 5e-4)
        assert crossovers(points.frame)["crossover_tokens"].tolist() == [float("inf")]

    def test_only_shapes_that_replace_each_other_are_compared(self, points: Points) -> None:
        """The windowed layer of the same heads, at each window; not another model's mixer."""
        wide = replace(WINDOW, window=8192)
        other = replace(GDN, num_v_heads=64)
        for tokens in (1024, 4096):
            points.add(MixerOp(FULL), tokens, 1e-3 * (tokens / 2048) ** 2)
            for spec in (WINDOW, wide, other):
                points.add(MixerOp(spec), tokens, 1e-3 * tokens / 2048)
        found = crossovers(points.frame)
        assert found["shape"].tolist() == [
            "sliding_window 32/8x128 W1024 for full_attention 32/8x128",
            "sliding_window 32/8x128 W8192 for full_attention 32/8x128",
        ]
        assert found["crossover_tokens"].tolist() == pytest.approx([2048, 2048])

    @pytest.mark.parametrize(
        ("ratio", "expected"),
        [([-1.0, -1.0], 0.0), ([1.0, 1.0], float("inf")), ([1.0, -1.0, 0.5, -0.5], 6.0)],
    )
    def test_crossing(self, ratio: list[float], expected: float) -> None:
        """Beyond the last length at which it is not cheaper; 6 is halfway from 3 to 12 in logs."""
        tokens = np.log([1.0, 2.0, 3.0, 12.0][: len(ratio)])
        assert crossing(tokens, np.array(ratio)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [(4096, 4200, "no"), (4000, 5000, "+25 %"), (0, 4096, "yes"), (float("inf"),) * 2 + ("no",)],
)
def test_a_crossover_says_whether_it_moved(a: float, b: float, text: str) -> None:
    assert moved_text(a, b) == text
