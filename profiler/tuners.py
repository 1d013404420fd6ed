"""Triton's tuners in a worker: they time alone, and choose for one sequence and for several apart.

The keys of most of fla's and mamba_ssm's tuners name heads and widths, not the batch, so a process
keeps what it chose for its first call. A process that serves one sequence tunes for one, one that
serves many for many; a sweep has both, and would give one of them the other's choice (fla's linear
attention at batch 1 took 1.25 times as long in one sweep as in another, docs/log.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from profiler.turns import Turns


class Tuners:
    """What this worker's tuners do; `several` says for which calls they choose now."""

    def __init__(self, turns: Turns) -> None:
        self.several = False
        self._turns = turns
        self._taken_over = False

    def take_over(self) -> None:
        """Once something has imported Triton; what a tuner times and how stays Triton's own."""
        module = sys.modules.get("triton.runtime.autotuner")
        if module is None or self._taken_over:
            return
        self._taken_over = True
        tuner = module.Autotuner
        tuner.do_bench = property(self._alone(tuner.do_bench))
        tuner.cache = property(self._choices, self._forget)
        if hasattr(tuner, "check_disk_cache"):  # older ones keep nothing
            tuner.check_disk_cache = self._from_disk(tuner.check_disk_cache)

    def _alone(self, made: Any) -> Callable[[Any], Callable[..., Any]]:
        def do_bench(tuner: Any) -> Callable[..., Any]:
            timed = made.__get__(tuner, type(tuner))

            def alone(call: Callable[[], object], **options: Any) -> Any:
                call()  # compiled, which takes longest
                with self._turns.alone():
                    return timed(call, **options)

            return alone

        return do_bench

    def _choices(self, tuner: Any) -> dict[Any, Any]:
        """Where a tuner keeps what it chose, by its key."""
        every = tuner.__dict__.setdefault("choices", {})
        choices: dict[Any, Any] = every.setdefault(self.several, {})
        return choices

    def _forget(self, tuner: Any, empty: dict[Any, Any]) -> None:
        tuner.__dict__["choices"] = {self.several: empty}

    def _from_disk(self, made: Callable[..., bool]) -> Callable[..., bool]:
        def check_disk_cache(
            tuner: Any, key: tuple[Any, ...], configs: list[Any], tune: Callable[[], None]
        ) -> bool:
            wider = (*key, "several sequences" if self.several else "one sequence")
            found = made(tuner, wider, configs, tune)
            if found:
                tuner.cache[key] = tuner.cache.pop(wider)
            return found

        return check_disk_cache
