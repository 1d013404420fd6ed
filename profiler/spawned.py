"""The first thing a worker process runs: ties its life to the sweep's, then becomes a worker.

Nothing heavy is imported before that: torch takes seconds, and a sweep may be killed in them.

    python -m profiler.spawned DESCRIPTOR PARENT STARTED
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
WATCH_S = 0.2


def die_with(parent: int, current_parent: Callable[[], int] = os.getppid) -> None:
    """Ends this process when `parent` is gone: by signal on Linux, and by a thread that looks.

    The signal works inside a kernel that never returns to Python; the thread, where there is none.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while current_parent() == parent:
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGKILL)

    if current_parent() != parent:  # it died before the signal was set
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=watch, daemon=True).start()


def prefer_to_be_killed() -> None:
    """Where the machine's memory runs out, the worker goes and not the sweep."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as handle:
        handle.write("1000")


def main(argv: list[str]) -> None:
    descriptor, parent, started = int(argv[0]), int(argv[1]), float(argv[2])
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep decides what an interrupt means
    prefer_to_be_killed()
    from profiler import worker

    worker.main(descriptor, started)


if __name__ == "__main__":
    main(sys.argv[1:])
