"""Triton's tuner in a worker: compiles as before, times alone, makes two choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.catalog import load_model
from planner.workload import MixerOp, Workload
from profiler.device import Device
from profiler.protocol import Job, Prepare
from profiler.tuners import Tuners
from profiler.turns import Turns
from profiler.worker import Server

autotuner = pytest.importorskip("triton.runtime.autotuner")
NAMES = ("do_bench", "cache", "check_disk_cache")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = {name: vars(autotuner.Autotuner).get(name) for name in NAMES}
    yield
    for name, value in before.items():
        if value is not None:
            setattr(autotuner.Autotuner, name, value)
        elif name in vars(autotuner.Autotuner):
            delattr(autotuner.Autotuner, name)


@pytest.fixture
def tuners(tmp_path: Path) -> Tuners:
    return Tuners(Turns(tmp_path, lambda: None))


class Kernel:
    """Runs fastest with the block that `best` names; knows what it was run with."""

    def __init__(self) -> None:
        self.best = 1
        self.blocks: list[int] = []

    def run(self, x: object, *, BLOCK: int, **_: object) -> None:  # as Triton's
        self.blocks.append(BLOCK)


def tuner_of(kernel: Kernel, timed: Callable[[], object] = lambda: None) -> Any:
    def benchmark(call: Callable[[], object], quantiles: tuple[float, ...]) -> list[float]:
        timed()
        call()
        return [float(abs(kernel.blocks[-1] - kernel.best)) for _ in quantiles]

    def fn(x: object) -> None: ...

    made = autotuner.Autotuner(
        fn, ["x"], [autotuner.Config({"BLOCK": n}) for n in (1, 2)], ["x"], None, None,
        do_bench=benchmark, cache_results=True,
    )  # fmt: skip
    made.fn = kernel
    return made


def nothing_kept(tuner: Any, key: object, configs: object, tune: Callable[[], None]) -> bool:
    tune()
    return False


def test_it_compiles_as_before_and_times_alone(
    tmp_path: Path,
    tuners: Tuners,
    is_alone: Callable[[Path], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(autotuner.Autotuner, "check_disk_cache", nothing_kept)
    seen: list[bool] = []
    tuner = tuner_of(Kernel(), lambda: seen.append(is_alone(tmp_path)))
    tuners.take_over()
    tuners.take_over()  # a second time changes nothing
    tuner.run("7")
    assert seen == [True, True]
    assert tuner.fn.blocks == [1, 1, 2, 2, 1]  # each first outside its turn; then what it chose
    assert not is_alone(tmp_path)


def test_one_sequence_and_several_have_a_choice_each(
    tuners: Tuners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotuner.Autotuner, "check_disk_cache", nothing_kept)
    kernel = Kernel()
    before = tuner_of(kernel)  # as one that a module made when it was imported
    tuners.take_over()
    for tuner in (before, tuner_of(kernel)):
        for several, best in ((False, 1), (True, 2)):
            tuners.several, kernel.best = several, best
            tuner.run("7")
            assert tuner.best_config.kwargs == {"BLOCK": best}
        kernel.best = 3 - kernel.best  # what is known is not timed again
        for several, best in ((False, 1), (True, 2)):
            tuners.several = several
            kernel.blocks.clear()
            tuner.run("7")
            assert kernel.blocks == [best]


def test_a_worker_tells_for_which_calls_it_tunes(cpu: Device, tuners: Tuners) -> None:
    server = Server(cpu)
    server.tuners = tuners
    spec = load_model("tiny").spec_for("linear_attention")
    for batch in (4, 1):
        workload = Workload(op=MixerOp(spec), batch_size=batch, new_tokens=8, dtype="fp32")
        server.answer(Prepare(job=Job(workload=workload, provider="chunked"), ragged=False))
        assert tuners.several == (batch > 1)


def test_what_is_kept_on_disk_is_kept_apart(
    tuners: Tuners, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk: dict[object, object] = {}

    def kept(tuner: Any, key: object, configs: object, tune: Callable[[], None]) -> bool:
        """As Triton's: reads the choice under the key it was given, else tunes and keeps it."""
        if key in disk:
            tuner.cache[key] = disk[key]
            return True
        tune()
        (disk[key],) = tuner.cache.values()
        return False

    monkeypatch.setattr(autotuner.Autotuner, "check_disk_cache", kept)
    tuners.take_over()
    kernel = Kernel()
    for several, best in ((False, 1), (True, 2)):
        tuners.several, kernel.best = several, best
        tuner_of(kernel).run("7")
    assert len(disk) == 2
    for several, best in ((False, 1), (True, 2)):
        tuners.several = several
        another = tuner_of(kernel)  # in another process
        kernel.blocks.clear()
        another.run("7")
        another.run("7")
        assert kernel.blocks == [best, best]
