"""The sweep keeps its promises when workers crash, hang or run out, and when it is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from planner.mixers import MixerSpec
from planner.store import Environment, Outcome, Point, Store
from planner.workload import ExpertsOp, MixerOp, StackOp, Workload
from profiler import gate
from profiler.accounts import Accounts
from profiler.device import Device
from profiler.footprint import footprint, held_bytes
from profiler.measure.timing import Limits
from profiler.plan import Cell, PlannedJob, key_of, unfinished
from profiler.pool import Pool, WorkerKey
from profiler.preparing import is_helper, preparing_queues, preparing_waves
from profiler.progress import Quiet
from profiler.protocol import Failed, Job, Prepare, Ready, Release
from profiler.providers import ENV_VARIABLE, families, get_family
from profiler.providers.recurrence import RecurrentInputs, reference
from profiler.providers.spec import Output, Provider
from profiler.session import make_settings, measure
from profiler.sweep import Settings, Sweep, Tally, together
from profiler.worker import Server

SPEC = MixerSpec(
    mixer="linear_attention",
    num_q_heads=2,
    num_k_heads=2,
    num_v_heads=2,
    k_head_dim=8,
    v_head_dim=8,
)
ENVIRONMENT = Environment(device="test CPU", device_kind="cpu", versions={"torch": "test"})

PLUGIN = textwrap.dedent(
    """
    import os, time, torch
    from profiler.providers.recurrence import reference
    from profiler.providers.spec import Output, Provider

    def provider(name, kernel):
        return Provider(name=name, prepare=lambda inputs: kernel, devices=("cpu",),
                        dtypes=("fp32",))

    def aborts(x):
        os.abort()

    def hangs(x):
        while True:
            time.sleep(0.01)

    def hungry(x):
        held = []
        while True:
            held.append(torch.empty(32 << 20))

    def wrong(x):
        good = reference(x)
        return Output(o=good.o * 1.01, state=good.state)

    def raises(x):
        raise ValueError("no such thing")

    KERNELS = dict(aborts=aborts, hangs=hangs, hungry=hungry, wrong=wrong, raises=raises,
                   good=reference)
    PROVIDERS = {"linear_attention": [provider(*item) for item in KERNELS.items()]}
    """
)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Providers that misbehave, found by ATTN_PROVIDERS here and in the workers."""
    (tmp_path / "misbehaving.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ENV_VARIABLE, "misbehaving")
    families.cache_clear()
    yield
    families.cache_clear()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "store.db"), shipped=False)
    yield opened
    opened.close()


def planned(provider: str, tokens: int = 64, **changes: object) -> PlannedJob:
    workload = Workload(op=MixerOp(SPEC), batch_size=1, new_tokens=tokens, dtype="fp32")
    job = PlannedJob(
        job=Job(workload=workload, provider=provider), cells=(Cell("eager", "warm"),), level=0
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def sweep(store: Store, device: Device, jobs: list[PlannedJob], **settings: object) -> Tally:
    runner = make_sweep(store, device, **settings)
    finished = store.finished_keys(ENVIRONMENT.id)
    return runner.run(unfinished(jobs, finished, ENVIRONMENT.id))


def make_sweep(store: Store, device: Device, **settings: object) -> Sweep:
    store.add_environment(ENVIRONMENT)
    run_id = store.start_run("test", ENVIRONMENT, command="test", planned_points=0)
    return Sweep(
        store,
        ENVIRONMENT,
        replace(device, memory_bytes=3 << 30),
        Settings(
            limits=Limits(time_cap_s=0.02),
            prepare_limit_s=15.0,
            max_workers=8,
            **settings,  # type: ignore[arg-type]
        ),
        Quiet(),
        run_id=run_id,
        accounts=Accounts(),
    )


@pytest.mark.slow
class TestMisbehavingWorkers:
    """Each costs one row, says why, and the sweep goes on."""

    @pytest.fixture
    def outcomes(self, plugin: None, store: Store, cpu: Device) -> dict[str, tuple[str, str]]:
        names = ("aborts", "hangs", "hungry", "wrong", "raises", "good")
        tally = sweep(store, cpu, [planned(name) for name in names])
        assert sum(tally.recorded.values()) == len(names)
        frame = store.points()
        assert len(frame) == len(names)
        return {
            row.provider: (row.outcome, row.reason)
            for row in frame[["provider", "outcome", "reason"]].itertuples()
        }

    def test_every_one(self, outcomes: dict[str, tuple[str, str]]) -> None:
        assert outcomes["good"] == ("ok", "")
        assert outcomes["aborts"][0] == "error" and "SIGABRT" in outcomes["aborts"][1]
        assert outcomes["hangs"] == ("timeout", "no answer within 15 s")
        assert outcomes["hungry"][0] == "out_of_memory"
        assert outcomes["wrong"][0] == "mismatch" and "1.00e-02" in outcomes["wrong"][1]
        assert outcomes["raises"] == ("error", "ValueError: no such thing")


def test_a_finished_point_is_not_measured_again(plugin: None, store: Store, cpu: Device) -> None:
    jobs = [planned("good"), planned("raises")]
    sweep(store, cpu, jobs)
    again = sweep(store, cpu, [*jobs, planned("good", tokens=65)])
    assert sum(again.recorded.values()) == 1 and len(store.points()) == 3


def test_faults_are_measured_again_when_asked(plugin: None, store: Store, cpu: Device) -> None:
    """Results are not: what is out of memory or unsupported stays so."""
    jobs = [planned("good"), planned("raises"), planned("chunked", reason="chunked does not")]
    sweep(store, cpu, jobs)
    left = unfinished(jobs, store.finished_keys(ENVIRONMENT.id, retry_faults=True), ENVIRONMENT.id)
    assert [p.job.provider for p in left] == ["raises"]


def test_what_check_doubts_is_measured_again_when_asked(
    plugin: None, store: Store, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another point, and one that has its joules, keep their times."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    settings = make_settings(cpu, quick=True, budget_s=None, time_cap_s=0.02)
    jobs = [planned("good", tokens=tokens) for tokens in (64, 65, 66)]

    def points_measured(**asked: bool) -> int:
        ended = measure(jobs, cpu, settings, store, command="test", quiet=True, **asked)
        return sum(ended.tally.recorded.values())

    def times() -> dict[int, list[float]]:
        frame = store.points()
        return dict(zip(frame["new_tokens"], frame["samples_s"], strict=True))

    assert points_measured() == 3
    environment_id = store.points()["environment_id"].iloc[0]
    doubted = [[at + i / 10 for i in range(10)] for at in (1.0, 3.0)]
    for job, samples, joules in zip(
        jobs, (doubted[0], [2.0] * 10, doubted[1]), (None, None, 5.0), strict=True
    ):
        point = Point(
            workload=job.job.workload,
            provider="good",
            environment_id=environment_id,
            outcome=Outcome.OK,
            mode="eager",
            cache_state="warm",
            samples_s=samples,
            method_version=job.method,
            energy_j=joules,
        )
        store.record(point)
    assert points_measured() == 0
    assert points_measured(retry_doubtful=True) == 1
    assert max(times()[64]) < 1.0 and times()[65] == [2.0] * 10 and times()[66] == doubted[1]


def test_a_point_without_joules_is_not_finished_for_energy() -> None:
    """A graph's warm point, that is: others get none."""
    warm = Cell("graph", "warm")
    job = planned("good", cells=(Cell("graph", "cold"), warm, Cell("eager", "warm")))
    done = {key_of(job, cell, ENVIRONMENT.id) for cell in job.cells}
    assert unfinished([job], done, ENVIRONMENT.id) == []
    wanted = replace(job, energy=True)
    assert unfinished([wanted], done, ENVIRONMENT.id) == [replace(wanted, cells=(warm,))]
    assert unfinished([wanted], done, ENVIRONMENT.id, with_energy=done) == []


def test_what_cannot_fit_is_recorded_with_its_need_and_not_tried(
    store: Store, cpu: Device
) -> None:
    sweep(store, cpu, [planned("chunked", tokens=1 << 26)])
    (row,) = store.points().itertuples()
    assert row.outcome == "out_of_memory" and "GiB" in row.reason and "not tried" in row.reason


def test_what_a_provider_does_not_do_is_a_result(store: Store, cpu: Device) -> None:
    tally = sweep(store, cpu, [planned("chunked", reason="chunked does not")])
    assert tally.recorded == {Outcome.UNSUPPORTED: 1} and tally.faults == 0


def test_a_spent_budget_leaves_the_rest_for_later(store: Store, cpu: Device) -> None:
    tally = sweep(store, cpu, [planned("chunked"), planned("chunked", 65)], budget_s=0.0)
    assert (tally.left, len(store.points())) == (2, 0)


def test_long_lengths_take_the_fastest_and_say_what_they_skip(
    plugin: None, store: Store, cpu: Device
) -> None:
    """A skipped row is decided anew by the next run, with a larger cap here."""
    usual = [planned("chunked"), planned("good", 64), planned("wrong", 64)]
    long = [planned(name, 96, long=True) for name in ("chunked", "good", "wrong")]
    tally = sweep(store, cpu, [*usual, *long], long_cap_s=0.0)
    assert tally.recorded == {Outcome.OK: 2, Outcome.MISMATCH: 1, Outcome.SKIPPED: 3}
    assert tally.faults == 1 and tally.left == 0
    frame = store.points()
    why = frame[frame["new_tokens"] == 96].set_index("provider")["reason"]
    assert "over the cap of" in why["good"] and "no time at the usual" in why["wrong"]
    again = sweep(store, cpu, [*usual, *long])
    assert again.recorded == {Outcome.OK: 2, Outcome.SKIPPED: 1}
    assert len(store.points()) == 6


def test_a_budget_measures_the_coarse_then_everything_that_fits(store: Store, cpu: Device) -> None:
    lengths = {32: 0, 512: 0, 128: 1, 64: 2, 256: 2}
    jobs = [planned("chunked", n, level=level) for n, level in lengths.items()]
    tally = sweep(store, cpu, jobs, budget_s=300.0)
    assert (tally.left, len(store.points())) == (0, 5)
    order = store.points().sort_values("measured_at", kind="stable")["new_tokens"].tolist()
    assert sorted(order[:3]) == [32, 128, 512] or len(set(store.points()["measured_at"])) < 5


def test_a_budget_takes_the_coarse_of_every_part_first(
    store: Store, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[list[int]] = []
    monkeypatch.setattr(
        Sweep, "_stage", lambda _, stage: stages.append([p.job.workload.new_tokens for p in stage])
    )
    finer = [planned("chunked", 48), planned("chunked", 32, level=2)]
    sweep(store, cpu, [*finer, replace(planned("chunked", 64), part=1)], budget_s=300.0)
    assert stages == [[48, 64], [32]]


def test_parts_are_prepared_together_as_long_as_their_workers_and_points_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stages = [[planned("a", 1)], [planned("b", 2), planned("a", 3)], [], [planned("c", 4)]]

    def joined(max_workers: int) -> list[list[int]]:
        found = together(iter(stages), max_workers)
        return [[p.job.workload.new_tokens for p in stage] for stage in found]

    assert joined(3) == [[1, 2, 3, 4]]
    assert joined(2) == [[1, 2, 3], [4]]
    assert joined(1) == [[1], [2, 3], [4]]
    monkeypatch.setattr("profiler.sweep.TOGETHER_POINTS", 3)
    assert joined(3) == [[1, 2, 3], [4]]
    assert list(together(iter([[], []]), 3)) == []


@pytest.mark.slow
def test_jobs_are_prepared_side_by_side_as_memory_allows(
    plugin: None, store: Store, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU's stage starts with: faults are recorded, the good are gated and not timed yet;
    two that together would not fit take turns."""
    runner = make_sweep(store, cpu, parallel=4)
    names = ("good", "chunked", "aborts", "wrong", "raises")
    together = []

    def at_once(keys: list[WorkerKey], timeout_s: float) -> list[WorkerKey]:
        together.append(len(keys))
        return Pool.replying(runner.pool, keys, timeout_s)

    monkeypatch.setattr(runner.pool, "replying", at_once)
    with runner.pool:
        runner._prepare_in_parallel(preparing_queues([planned(name) for name in names], 0))
        assert max(together) > 1
        assert {job.provider for job in runner.prepared} == {"good", "chunked"}
        outcomes = store.points().set_index("provider")["outcome"].to_dict()
        assert outcomes == {"aborts": "error", "wrong": "mismatch", "raises": "error"}
        together.clear()
        half = planned("good", 96)
        tight = footprint(half.job.workload) * 1.5
        monkeypatch.setattr(runner, "device", replace(cpu, memory_bytes=int(tight)))
        runner._prepare_in_parallel(preparing_queues([half, planned("chunked", 96)], 0))
        assert max(together) == 1 and len(runner.prepared) == 4


def test_a_long_queue_of_compiling_jobs_is_dealt_out_to_spare_workers() -> None:
    """No job is lost or doubled; plain providers and short queues keep one worker."""
    jobs = [planned(name, n) for name in ("fla", "chunked") for n in range(1, 21)]
    jobs += [planned("triton", n) for n in range(1, 16)]  # compiled once for all lengths
    queues = preparing_queues(jobs, spare=8)
    assert [len(queue) for queue in queues.values()] == [7, 7, 6, 15, 20]
    assert [is_helper(key) for key in queues] == [False, True, True, False, False]
    assert sorted(p.job.workload.new_tokens for q in queues.values() for p in q) == sorted(
        p.job.workload.new_tokens for p in jobs
    )
    assert [len(queue) for queue in preparing_queues(jobs, spare=0).values()] == [20, 15, 20]
    first = {key[1]: queue[0].job.workload.new_tokens for key, queue in queues.items()}
    # tuned on the largest
    assert first == {"fla": 20, "fla #1": 19, "fla #2": 18, "triton": 1, "chunked": 1}


def test_stacks_are_prepared_last_and_one_of_those_with_the_same_blocks() -> None:
    """The deeper run the same kernels on the same shapes; another length is another shape."""
    kinds = (("F", replace(SPEC, mixer="full_attention")), ("L", SPEC))

    def stack(pattern: str, tokens: int) -> PlannedJob:
        kinds_used = tuple(kind for kind in kinds if kind[0] in pattern)
        op = StackOp(pattern, kinds_used, 32)
        workload = Workload(op=op, batch_size=1, new_tokens=tokens, dtype="fp32")
        name = "+".join({"F": "sdpa", "L": "fla"}[letter] for letter, _ in kinds_used)
        return planned(name, job=Job(workload=workload, provider=name))

    jobs = [stack(pattern, n) for n in (64, 128) for pattern in ("LLLF", "LF", "FL", "L", "F")]
    jobs += [planned("fla", n) for n in (1, 64)]
    kernels, stacks = preparing_waves(jobs, spare=8)
    assert {key: [p.job.workload.new_tokens for p in queue] for key, queue in kernels.items()} == {
        (SPEC.mixer, "fla"): [64, 1]
    }
    found = sorted(
        (p.job.provider, p.job.workload.op.pattern, p.job.workload.new_tokens)
        for queue in stacks.values()
        for p in queue
        if isinstance(p.job.workload.op, StackOp)
    )
    assert found == [
        ("fla", "L", 64),
        ("fla", "L", 128),
        ("sdpa", "F", 64),
        ("sdpa", "F", 128),
        ("sdpa+fla", "LF", 64),
        ("sdpa+fla", "LF", 128),
    ]


def test_a_tuner_chooses_for_the_call_and_not_for_the_gate(
    cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call runs first: a tuner whose key has no length keeps its first choice."""
    lengths: list[int] = []

    def kernel(x: RecurrentInputs) -> Output:
        lengths.append(x.num_tokens)
        return reference(x)

    notes = Provider(name="notes", prepare=lambda _: kernel, devices=("cpu",), dtypes=("fp32",))
    monkeypatch.setattr(
        "profiler.worker.stack.resolve", lambda *_: (get_family(SPEC.mixer), notes)
    )
    ready = Server(cpu).prepare(Prepare(job=planned("notes", 1500).job, ragged=True))
    assert lengths[0] == 1500 and lengths[-1] == gate.RAGGED_TOKENS
    assert ready.gate_error is not None and ready.gate_error < gate.EXACT_TOLERANCE


@pytest.mark.parametrize(
    ("lacks", "asked", "ended"),
    [
        ([], [], []),  # it fits
        ([None], [], []),  # alone it would not fit either: believed
        ([1 << 20], ["a", "b"], []),  # without their tensors it fits
        ([1 << 30, 1 << 20], ["a", "b"], ["a", "b"]),  # and without the workers themselves
        ([1 << 30, 8 << 30], ["a", "b"], []),  # that would not have been enough
    ],
)
def test_memory_that_others_hold_is_made_free_before_its_lack_is_believed(
    store: Store, cpu: Device, monkeypatch: pytest.MonkeyPatch,
    lacks: list[int | None], asked: list[str], ended: list[str],
) -> None:  # fmt: skip
    runner, told, gone = make_sweep(store, cpu), [], []
    keys = [("full_attention", name) for name in ("mine", "a", "b")]
    runner.pool.handles = dict.fromkeys(keys)  # type: ignore[assignment]
    monkeypatch.setattr(runner, "_ask", lambda key, request, limit: told.append(key[1]))
    monkeypatch.setattr(runner.pool, "end", lambda key: gone.append(key[1]))
    results = [Failed(outcome=Outcome.OUT_OF_MEMORY, reason="full", lacked_bytes=n) for n in lacks]
    attempts = iter([*results, None, None])
    runner._with_room(keys[0], lambda: next(attempts))
    assert (told, gone) == (asked, ended)


def test_what_one_worker_of_a_provider_saw_fail_stays_failed(store: Store, cpu: Device) -> None:
    """Two prepare at once; whichever answers last, the provider does not pass."""
    runner = make_sweep(store, cpu)
    one, other = planned("fla", 64), planned("fla", 96)
    whole = Failed(outcome=Outcome.MISMATCH, reason="off", whole=True)
    for request in (Prepare(job=other.job, ragged=True), Prepare(job=other.job, ragged=False)):
        assert runner._learn(one, Prepare(job=one.job, ragged=True), whole) is whole
        assert runner._learn(other, request, Ready(gate_error=1e-3, memory=None)) is whole
    assert runner.prepared == {} and list(runner.ragged.values()) == [whole]


def test_one_worker_at_a_time_makes_the_comparison_that_holds_for_all(
    store: Store, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_sweep(store, cpu, parallel=8)
    jobs = [planned("fla", n) for n in range(64, 74)]
    queues = preparing_queues(jobs, spare=8)
    assert len(queues) == 2
    asked: list[Prepare] = []
    handle = SimpleNamespace(ask=lambda request, limit: asked.append(request))
    monkeypatch.setattr(runner.pool, "get", lambda key: handle)
    busy: dict[WorkerKey, tuple[PlannedJob, Prepare]] = {}
    runner._hand_out(queues, busy)
    assert [request.ragged for request in asked] == [True]
    (key,) = busy
    job, request = busy.pop(key)
    runner._learn(job, request, Ready(gate_error=1e-3, memory=None))
    runner._hand_out(queues, busy)
    assert [request.ragged for request in asked] == [True, False, False]


def test_a_worker_prepares_as_soon_as_it_is_there_and_one_that_never_comes_is_passed_over(
    store: Store, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three start at once; the first to come works while the second imports; the third dies. When
    they are there, the one that is needed afterwards begins to import."""
    runner = make_sweep(store, cpu, parallel=8)
    keys = [(SPEC.mixer, name) for name in ("early", "late", "dead")]
    told: list[str] = []

    class Worker:
        import_s: float | None = None

        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, request: Prepare | Release, limit_s: float) -> None:
            told.append(f"{self.name} {type(request).__name__}")

        def collect(self) -> Ready:
            return Ready(gate_error=1e-3, memory=None, seconds={"gate": 1.0})

    workers = {key: Worker(key[1]) for key in keys}
    answers = iter([[keys[0]], [keys[0]], [keys[1], keys[2]], [keys[1]]])

    def greet(key: WorkerKey) -> Worker | Failed:
        if key[1] == "dead":
            return Failed(outcome=Outcome.ERROR, reason="the worker died")
        workers[key].import_s = 3.0
        told.append(f"{key[1]} came")
        return workers[key]

    monkeypatch.setattr(runner.pool, "handles", dict(workers))

    def start(key: WorkerKey) -> Worker | None:
        if key[1] == "next":
            told.append("next starts")
        return workers.get(key)

    monkeypatch.setattr(runner.pool, "start", start)
    monkeypatch.setattr(runner.pool, "get", workers.__getitem__)
    monkeypatch.setattr(runner.pool, "greet", greet)
    monkeypatch.setattr(runner.pool, "replying", lambda keys, timeout_s: next(answers))
    queues = preparing_queues([planned(key[1]) for key in keys], 0)
    runner._prepare_in_parallel(queues, [*keys, (SPEC.mixer, "next")])
    steps = ("came", "Prepare", "Release")
    wanted = [f"{name} {step}" for name in ("early", "late") for step in steps]
    assert told == [*wanted[:5], "next starts", *wanted[5:]]
    assert {job.provider for job in runner.prepared} == {"early", "late"}
    assert runner.tally.prepare_s == {keys[0]: 1.0, keys[1]: 1.0}


def test_an_interrupt_while_compiling_does_not_book_it_as_idle(
    store: Store, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_sweep(store, cpu)

    def interrupted(*_: object) -> None:
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_hand_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner._prepare_in_parallel(preparing_queues([planned("fla")], 0))
    assert runner.accounts.split()["compile"] >= 0.2


class TestFootprint:
    """Memory, not traffic."""

    def test_a_windowed_step_holds_the_whole_cache(self) -> None:
        """2 KV heads of 64, 4096 tokens, bf16: 2 MiB of keys and values."""
        spec = MixerSpec(mixer="sliding_window", num_q_heads=2, num_k_heads=2, num_v_heads=2,
                         k_head_dim=64, v_head_dim=64, window=128)  # fmt: skip
        w = Workload(
            op=MixerOp(spec), batch_size=1, new_tokens=1, cached_tokens=4095, dtype="bf16"
        )
        assert held_bytes(w) == 2 * 2 * 4096 * 64 * 2 + 2 * 2 * 64 * 2
        assert w.min_bytes < held_bytes(w) / 8

    def test_a_cache_is_read_where_it_lies(self) -> None:
        """64 sequences of 4096 tokens, 2 KV heads of 64 in bf16, 2 MiB each: all of them once, and
        what the gate makes of one, in fp64 and in another order. A window changes nothing."""
        spec = MixerSpec(
            mixer="sliding_window",
            num_q_heads=2,
            num_k_heads=2,
            num_v_heads=2,
            k_head_dim=64,
            v_head_dim=64,
            window=512,
        )
        step = Workload(
            op=MixerOp(spec), batch_size=64, new_tokens=1, cached_tokens=4095, dtype="bf16"
        )
        sequence = 2 * 2 * 64 * 4095 * 2
        rest = held_bytes(step) - 64 * sequence
        assert footprint(step) == 64 * sequence + 8 * sequence + 3 * rest
        assert 0 < rest < sequence
        whole = replace(step, op=MixerOp(replace(spec, mixer="full_attention", window=None)))
        assert footprint(whole) == footprint(step)

    def test_layers_of_a_stack_take_turns(self) -> None:
        """Doubling the layers doubles the traffic, and only the weights of what is held."""
        short, long = (
            Workload(op=StackOp("L" * n, (("L", SPEC),), 32), batch_size=1, new_tokens=65536,
                     dtype="bf16")
            for n in (4, 8)
        )  # fmt: skip
        assert long.min_bytes == 2 * short.min_bytes
        assert held_bytes(long) < 1.01 * held_bytes(short)
        assert footprint(long) > held_bytes(long) + long.min_bytes / 8

    def test_all_experts_lie_there(self) -> None:
        op = ExpertsOp(512, 256, num_experts=32, top_k=1)
        w = Workload(op=op, batch_size=1, new_tokens=1, dtype="bf16")
        assert held_bytes(w) == 2 * (2 * 512 + 32 * 3 * 512 * 256)

    def test_training_holds_gradients_too(self) -> None:
        w = Workload(op=MixerOp(SPEC), batch_size=1, new_tokens=512, dtype="fp32")
        assert held_bytes(replace(w, training=True)) == 2 * held_bytes(w) == 2 * w.min_bytes


def test_time_is_accounted_for(store: Store, cpu: Device) -> None:
    accounts = Accounts()
    time.sleep(0.05)
    with accounts.clock("timed"):
        time.sleep(0.02)
    split = accounts.split()
    assert split["timed"] == pytest.approx(0.02, abs=0.01)
    assert sum(split.values()) == pytest.approx(accounts.total_s, abs=0.01)


# Killed at any moment


RUN = (
    sys.executable, "-m", "profiler.cli", "run", "--device", "cpu", "--shape", "tiny",
    "--mixers", "full_attention,linear_attention", "--lengths", "32,64,96", "--no-dense",
    "--ratios", "none", "--time-cap", "0.05", "--caches", "cold,warm", "-q",
)  # fmt: skip


def workers_of(parent: int) -> list[int]:
    """Live processes that name `parent` as the sweep they serve."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if b"profiler.spawned" in argv and str(parent).encode() in argv and state != "Z":
            found.append(int(entry.name))
    return found


def keys(store: Path) -> set[str]:
    opened = Store.open(str(store), shipped=False)
    frame = opened.points()
    opened.close()
    assert not frame["key"].duplicated().any()
    return set(frame["key"])


def start(store: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*RUN, "--store", str(store)], stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_points(tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "a.db", tmp_path / "b.db"
    started = time.monotonic()
    assert start(undisturbed).wait(300) == 0
    whole_s = time.monotonic() - started
    moments = random.Random(7)
    seen: set[str] = set()
    for _ in range(4):
        process = start(disturbed)
        try:
            process.wait(moments.uniform(0.2, 0.9) * whole_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(2.0)
        assert workers_of(process.pid) == []
        if disturbed.exists():
            now = keys(disturbed)
            assert seen <= now, "a stored point was lost"
            seen = now
    assert start(disturbed).wait(300) == 0
    assert keys(disturbed) == keys(undisturbed)


@pytest.mark.slow
def test_a_worker_dies_with_its_parent_even_inside_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider burns its core in one uninterruptible call; the parent is killed."""
    (tmp_path / "busy.py").write_text(
        PLUGIN.replace("time.sleep(0.01)", "torch.randn(1500, 1500) @ torch.randn(1500, 1500)")
    )
    monkeypatch.setenv(ENV_VARIABLE, "busy")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    monkeypatch.setenv("PYTHONPATH", path)
    command = [*RUN, "--providers", "hangs", "--store", str(tmp_path / "s.db")]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not workers_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(6.0)  # past its imports, inside the kernel
    assert workers_of(process.pid)
    process.kill()
    process.wait()
    time.sleep(2.0)
    assert workers_of(process.pid) == []


@pytest.mark.slow
def test_an_interrupt_saves_the_state_and_exits_130(tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    process = start(store)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
        if store.exists() and len(workers_of(process.pid)) > 0:
            break
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    opened = Store.open(str(store), shipped=False)
    assert opened.run().status == "interrupted"
    opened.close()


def test_an_error_at_one_length_does_not_condemn_the_others(
    store: Store, cpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong beyond 1500 tokens only: past the gate's whole comparison, caught by the part's."""
    (tmp_path / "wrong_when_long.py").write_text(
        PLUGIN.replace("good.o * 1.01", "good.o * (1.01 if x.q.shape[1] > 1500 else 1)")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ENV_VARIABLE, "wrong_when_long")
    families.cache_clear()
    sweep(store, cpu, [planned("wrong", 2000), planned("wrong", 64), planned("wrong", 1600)])
    families.cache_clear()
    outcomes = store.points().set_index("new_tokens")["outcome"].to_dict()
    assert outcomes == {2000: "mismatch", 64: "ok", 1600: "mismatch"}
