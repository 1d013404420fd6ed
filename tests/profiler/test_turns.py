"""Who is to be alone gets its turn, soon and across processes; others wait for it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from profiler.turns import Turns

ROOT = Path(__file__).parents[2]

OTHER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from profiler.turns import Turns

    turns = Turns(Path(sys.argv[1]), lambda: None)
    print("ready", flush=True)
    while True:
        with turns.shared():
            time.sleep(0.05)
    """
)


def nothing() -> None:
    pass


def test_it_is_soon_a_tuners_turn_however_busy_the_others_are(
    tmp_path: Path, is_alone: Callable[[Path], bool]
) -> None:
    """Four share all the time, and one of them is killed while it does."""
    others = [
        subprocess.Popen(
            [sys.executable, "-c", OTHER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
        )
        for _ in range(4)
    ]
    try:
        for other in others:
            assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        others[0].kill()
        turns = Turns(tmp_path, nothing)
        for _ in range(5):
            asked = time.monotonic()
            with turns.alone():
                assert time.monotonic() - asked < 10  # no more than what each has under way
                assert is_alone(tmp_path)
    finally:
        for other in others:
            other.kill()
            other.wait()
            assert other.stdout is not None
            other.stdout.close()


def test_alone_within_shared_gives_it_up_and_takes_it_again(
    tmp_path: Path, is_alone: Callable[[Path], bool]
) -> None:
    """Else two that share and tune would wait for each other; what is under way is awaited."""
    finished: list[str] = []
    turns = Turns(tmp_path, lambda: finished.append("done"))
    other = Turns(tmp_path, nothing)
    with turns.shared():
        with turns.alone():
            assert finished == ["done"] and is_alone(tmp_path)
        assert finished == ["done", "done"] and not is_alone(tmp_path)
        with other.shared():
            pass
    assert len(finished) == 3
    with other.alone():
        assert is_alone(tmp_path)


def test_a_failure_ends_the_turn(tmp_path: Path) -> None:
    turns = Turns(tmp_path, nothing)
    for turn in (turns.shared, turns.alone):
        with pytest.raises(ValueError, match="no"), turn():
            raise ValueError("no")
    with Turns(tmp_path, nothing).alone():
        pass
