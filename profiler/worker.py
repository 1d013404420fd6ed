"""A worker: one process that runs one provider's kernels and answers over a pipe.

It holds the device's state, so that a crash, a poisoned CUDA context or a hang costs this process
and one row. It never writes the store. `profiler.spawned` starts it and ends it with its parent.
"""

from __future__ import annotations

import gc
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from planner.store.records import Outcome
from profiler import gate, stack
from profiler.device import Device
from profiler.measure.ceilings import Ceilings, measure_ceilings
from profiler.measure.energy import measure_energy
from profiler.measure.memory import Memory, measure_memory
from profiler.measure.nvml import Nvml
from profiler.measure.timing import (
    CpuTimer,
    CudaTimer,
    Graph,
    NotCapturable,
    Timing,
    calls_per_graph,
    first_line,
    is_heavy,
)
from profiler.protocol import (
    CONTEXT_BYTES,
    Failed,
    Hello,
    Job,
    Measure,
    Prepare,
    Ready,
    Reference,
    Release,
    Reply,
    Request,
    Start,
    Timed,
)
from profiler.providers.spec import Call, Family, Output, Provider
from profiler.segments import bind_segments, segment_size
from profiler.tuners import Tuners
from profiler.turns import Turns

# The worker's side

KEPT_COPIES_BYTES = 1 << 30
"""More than this, dropped after a turn, goes back to the GPU at once: kept by torch's allocator it
would be missing where other workers' copies need room."""


@dataclass
class Current:
    """The job in hand."""

    job: Job
    family: Family
    provider: Provider
    inputs: Any
    call: Call
    gate_error: float | None
    memory: Memory | None


class Server:
    """Answers requests one at a time."""

    def __init__(self, device: Device, turns: Path | None = None) -> None:
        self.device = device
        self.turns = Turns(turns, self.synchronize) if turns is not None else None
        self.tuners = Tuners(self.turns) if self.turns else None
        self.current: Current | None = None
        self.seconds: dict[str, float] = {}
        self._modules = len(sys.modules)
        self.nvml = Nvml.open(device.index) if device.kind == "cuda" else None
        self._cpu_timer: CpuTimer | None = None
        throttled = self.nvml.throttled if self.nvml else lambda: False
        self._cuda_timer = CudaTimer(device.torch, device.cache_bytes, throttled)

    def answer(self, request: Request) -> Reply:
        self.seconds = {}
        match request:
            case Prepare():
                return self.prepare(request)
            case Measure():
                return self.measure(request)
            case Reference():
                self.release()
                return measure_ceilings(self.device, request.dtype)
            case Release():
                self.release()
                return Ready(gate_error=None, memory=None)
            case Start():
                raise ValueError("a worker starts once")

    def beside_others(self) -> AbstractContextManager[None]:
        """For what uses a GPU that a tuner may want to have alone."""
        return self.turns.shared() if self.turns else nullcontext()

    def _first(self, compiles: bool) -> AbstractContextManager[None]:
        """For the first call at a shape: a tuner need not wait for one that is compiled."""
        return nullcontext() if compiles else self.beside_others()

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[what] = self.seconds.get(what, 0.0) + spent

    def spent(self, wall_s: float) -> dict[str, float]:
        """Where an answer's time went: what no clock saw is bookkeeping."""
        return self.seconds | {"bookkeeping": max(0.0, wall_s - sum(self.seconds.values()))}

    def synchronize(self) -> None:
        if self.device.kind == "cuda":
            torch.cuda.synchronize(self.device.torch)

    def release(self, *, failed: bool = False) -> None:
        """Drops tensors. What a provider's packages brought is frozen (see `main`), but not after
        a failure: a cycle of the exception's frames would keep their tensors for good."""
        self.current = None
        self._cuda_timer.release()
        gc.collect()
        if len(sys.modules) != self._modules and not failed:
            gc.freeze()
            self._modules = len(sys.modules)
        if self.device.kind == "cuda":
            torch.cuda.empty_cache()

    def prepare(self, request: Prepare) -> Ready:
        """Sets the job up and runs it: compiled, tuned, and compared with the reference.

        The call itself comes first: a tuner whose key leaves out batch and length keeps what it
        chose then, and should not have chosen it for the gate's two short sequences.
        """
        job = request.job
        if self.current is not None and self.current.job == job:
            return self._ready(self.current)
        self.release()
        if self.tuners:  # also for what is timed and compared next, until another job comes
            self.tuners.several = job.workload.batch_size > 1
        family, provider = stack.resolve(job.workload, job.provider)
        segments = segment_size(job.variant)
        errors: list[float] = []
        with self.clock("warm"), self.beside_others():
            inputs = family.make_inputs(job.workload, self.device.torch, 0)
            pristine = inputs.clone() if provider.in_place and not request.known else inputs
        with self.clock("compile"):
            if segments is None:
                call = gate.bind(provider, inputs, training=job.workload.training)
            else:
                call = bind_segments(provider, inputs, segments, whole_output=False)
            compiles = bool(provider.requires)
            output, memory = self._first_call(call, inputs, compiles=compiles, known=request.known)
            if segments is not None and not request.known:
                output = bind_segments(provider, inputs, segments, whole_output=True)()
        if not request.known and not job.workload.training:
            with self.clock("gate"), self._quietly(), self.beside_others():
                part = gate.check_part(family, pristine, output)
                errors += [part.error] if part is not None else []
        del output, pristine
        if request.ragged:
            with self.clock("gate"), self._quietly(), self._first(compiles):
                verdict = gate.check_ragged(
                    family,
                    provider,
                    job.workload,
                    self.device.torch,
                    segmented=segments is not None,
                )
                errors.append(verdict.error)
        worst = max(errors, default=None)
        self.current = Current(job, family, provider, inputs, call, worst, memory)
        return self._ready(self.current)

    def _first_call(
        self, call: Call, inputs: Any, *, compiles: bool, known: bool
    ) -> tuple[Output, Memory | None]:
        """The output that is gated, and the call's memory unless that is known.

        On a GPU compiling and tuning allocate too, so memory is taken from a second call.
        """
        if self.device.kind == "cpu":
            return measure_memory(call, inputs.nbytes, self.device.torch)
        if self.tuners:
            self.tuners.take_over()
        with self._first(compiles):
            output = call()
            self.synchronize()
        if known:
            return output, None
        with self.beside_others():
            kept = Output(o=output.o, state=None if output.state is None else output.state.clone())
            _, memory = measure_memory(call, inputs.nbytes, self.device.torch)
        return kept, memory

    def _ready(self, current: Current) -> Ready:
        return Ready(gate_error=current.gate_error, memory=current.memory)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """References on a CPU run on one thread: their small steps gain nothing from more."""
        threads = torch.get_num_threads()
        if self.device.kind == "cpu":
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def measure(self, request: Measure) -> Timed:
        current = self.current
        assert current is not None, "measure before prepare"
        before = self.telemetry()
        with self.clock("timed"):
            timing = self._time(current, request)
            copied = current.inputs.copies_bytes(timing.rotation) if timing.rotation > 1 else 0
            if copied > KEPT_COPIES_BYTES:
                torch.cuda.empty_cache()
        energy = None
        if request.energy and self.nvml is not None:
            with self.clock("energy"):
                run, calls = repeated(current.call, min(timing.samples_s))
                energy = measure_energy(run, calls, self.device.torch, self.nvml)
        return Timed(
            samples_s=timing.samples_s,
            method=timing.method,
            rotation=timing.rotation,
            telemetry={"before": before, "after": self.telemetry()},
            energy_j=energy,
        )

    def telemetry(self) -> dict[str, Any]:
        """What may have disturbed a time: a GPU's clocks and throttling, a CPU's load."""
        if self.device.kind == "cpu":
            return {"load": round(os.getloadavg()[0], 2)}
        return self.nvml.telemetry() if self.nvml else {}

    def _time(self, current: Current, request: Measure) -> Timing:
        if self.device.kind == "cpu":
            if self._cpu_timer is None:
                self._cpu_timer = CpuTimer(self.device.cache_bytes)
            return self._cpu_timer.time(current.call, request.cache, request.limits)
        return self._cuda_timer.time(
            current.call,
            lambda n: self._copies(current, n),
            mode=request.mode,
            cache=request.cache,
            touched_bytes=int(current.job.workload.min_bytes),
            copies_bytes=current.inputs.copies_bytes,
            rotation=request.rotation,
            heavy=is_heavy(current.job.workload),
            limits=request.limits,
        )

    @staticmethod
    def _copies(current: Current, n: int) -> list[Call]:
        if (size := segment_size(current.job.variant)) is not None:
            laid_out = [current.inputs.clone() for _ in range(n)]
            return [bind_segments(current.provider, x, size, whole_output=False) for x in laid_out]
        training = current.job.workload.training
        return gate.copies(current.provider, current.inputs, n, training=training)


def repeated(call: Call, seconds: float) -> tuple[Callable[[], object], int]:
    """What runs the call again and again, as its warm time in a graph is taken; calls a run."""
    count = calls_per_graph(seconds)
    return Graph([call] * count).replay, count


def failure(error: Exception) -> Failed:
    """What an exception means for the row: a limit of memory or of the provider, or a fault."""
    text = first_line(error)
    lowered = str(error).lower()
    if isinstance(error, gate.Mismatch):
        return Failed(outcome=Outcome.MISMATCH, reason=text, whole=error.whole)
    memory_words = (
        "out of memory", "can't allocate memory", "not enough memory", "bad_alloc",
        "cublas_status_alloc_failed",
    )  # fmt: skip
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in lowered for word in memory_words
    ):
        return Failed(outcome=Outcome.OUT_OF_MEMORY, reason=text, lacked_bytes=lacked(error))
    refusals = ("no available kernel", "no viable backend", "invalid backend", "out of resource")
    if isinstance(error, NotCapturable):
        reason = f"cannot be captured in a CUDA graph: {text}"
        return Failed(outcome=Outcome.UNSUPPORTED, reason=reason)
    if isinstance(error, NotImplementedError) or any(word in lowered for word in refusals):
        return Failed(outcome=Outcome.UNSUPPORTED, reason=text)
    return Failed(
        outcome=Outcome.ERROR,
        reason=f"{type(error).__name__}: {text}",
        fatal="cuda error" in lowered or "illegal memory" in lowered,
    )


_TRIED = re.compile(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def lacked(error: Exception) -> float | None:
    """Bytes that were wanting, if what this process holds and asked for would fit there alone.

    The driver, and libraries that allocate past torch, do not say how much: nothing is known then
    but that it is worth another try. None on a CPU.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    tried = _TRIED.search(str(error))
    if tried is None:
        return 0.0
    wanted = float(tried[1]) * _UNITS[tried[2]]
    free, total = torch.cuda.mem_get_info()
    alone = wanted + torch.cuda.memory_allocated() + CONTEXT_BYTES < total
    return max(0.0, wanted - free) if alone else None


def serve(connection: Connection, device: Device, turns: Path | None = None) -> None:
    """Answers until the pipe closes."""
    server = Server(device, turns)
    while True:
        try:
            request: Request = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        reply: Reply
        try:
            reply = server.answer(request)
        # every failure of a provider is a row; the parent goes on
        except Exception as error:  # noqa: BLE001
            reply = failure(error)
            # the frames, its own and those of what it came from, hold the tensors that did not fit
            error.__traceback__ = error.__cause__ = error.__context__ = None
            if not reply.fatal:
                server.release(failed=True)
        if not isinstance(reply, Hello | Ceilings):
            reply = replace(reply, seconds=server.spent(time.perf_counter() - start))
        connection.send(reply)
        if isinstance(reply, Failed) and reply.fatal:
            return


MEMORY_SHARE = 0.9


def limit_memory(device: Device) -> None:
    """A CPU worker's allocations fail before the system has to kill something."""
    if device.kind != "cpu":
        return
    limit = int(MEMORY_SHARE * device.memory_bytes)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def main(descriptor: int, started: float) -> None:
    """Serves the pipe at `descriptor`; `started` is when the sweep asked for this process."""
    connection = Connection(descriptor)
    first: Start = connection.recv()
    device = first.device
    limit_memory(device)
    torch.set_grad_enabled(False)
    if device.kind == "cuda":
        torch.cuda.set_device(device.index)
        torch.zeros(1, device=device.torch)
    gc.collect()
    gc.freeze()  # or every release walks through the hundred thousands of objects of torch
    connection.send(Hello(import_s=time.time() - started))
    serve(connection, device, first.turns)
