"""attn-profile: one clear line and the right exit code for mistakes; help for everything."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from planner.catalog import data_dir
from planner.cli import run_cli
from planner.mixers import MixerSpec
from planner.store import Environment, Outcome, Point, Store
from planner.store.files import load_points
from planner.workload import MixerOp, Workload
from profiler.cli import app
from profiler.cli.options import parse_duration
from profiler.cli.run import command_line, report
from profiler.sweep import Tally

Capture = pytest.CaptureFixture[str]


def invoke(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["attn-profile", *arguments])
    monkeypatch.setenv("NO_COLOR", "1")
    try:
        return run_cli(app)
    except SystemExit as exit_:
        return int(exit_.code or 0)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "store.db"
    monkeypatch.setenv("ATTN_STORE", str(path))
    return path


MISTAKES = [
    (["run", "--mixers", "mamba3"], 2, "unknown mixer 'mamba3'"),
    (["run", "--lengths=-1k"], 2, "got '-1k'"),
    (["run", "--lengths", "0"], 2, "at least 1"),
    (["run", "--lengths", "8k:1k"], 2, "must rise"),
    (["run", "--ratios", "3:0:1"], 2, "got '3:0:1'"),
    (["run", "--lengths", "1k,2k", "--window", "4k"], 2, "window must be between 1 and"),
    (["run", "--providers", "sdpa_flahs"], 2, "did you mean 'sdpa_flash'"),
    (["run", "--shape", "llama-9"], 2, "unknown model 'llama-9'"),
    (["run", "--dtype", "int3"], 2, "got 'int3'"),
    (["run", "--budget", "soon"], 2, "got 'soon'"),
    (["run", "--time-cap=-1"], 2, "must be positive"),
    (["run", "--device", "tpu"], 2, "got 'tpu'"),
    (["run", "--device", "cuda:77"], 3, "error: no "),
    (["show", "nothing"], 2, "this store has no runs yet: `attn-profile run`"),
    (["import", "missing.csv"], 3, "missing.csv"),
    (["import", "aiconfigurator"], 2, "needs the folder"),
    (["import", "aiconfigurator", "/"], 3, "aiconfigurator-core"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    assert invoke(arguments, monkeypatch) == code
    out, err = capsys.readouterr()
    assert out == "" and message in err
    assert len(err.strip().splitlines()) == 1, err


def test_a_report_names_what_was_prepared_longest(capsys: Capture) -> None:
    tally = Tally(
        recorded={Outcome.OK: 1},
        split_s={"compile": 3.0, "idle": 1.0},
        prepare_s={("mla", "triton"): 2.0, ("full_attention", "flex"): 41.0},
    )
    report("one", "e", tally, 0, as_json=False)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "time 4.0 s: compile 3.0 s, idle 1.0 s; bookkeeping and idle 25.0 %",
        "prepared longest, beside each other: flex (full_attention) 41 s, triton (mla) 2 s",
    ]
    report("one", "e", tally, 0, as_json=True)
    told = json.loads(capsys.readouterr().out)["prepare_seconds"]
    assert told == {"triton (mla)": 2.0, "flex (full_attention)": 41.0}


@pytest.mark.parametrize("content", ["not a database, but long enough to be read as one" * 40])
def test_a_text_file_as_store_is_refused_and_kept(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    assert invoke(["status", "--store", str(path)], monkeypatch) == 3
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert path.read_text() == content


def test_a_broken_csv_is_refused_with_its_row(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    csv = fill_and_export(store, tmp_path, monkeypatch)
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join([lines[0], lines[1].replace(",eager,", ",sideways,")]) + "\n")
    capsys.readouterr()
    assert invoke(["import", str(csv)], monkeypatch) == 2
    assert "row 2" in capsys.readouterr().err


def test_what_is_exported_can_be_imported(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    csv = fill_and_export(store, tmp_path, monkeypatch)
    other = tmp_path / "other.db"
    assert invoke(["import", str(csv), "--store", str(other)], monkeypatch) == 0
    assert "read 1 points" in capsys.readouterr().err
    a, b = (Store.open(str(p), shipped=False).points()["key"] for p in (store, other))
    assert a.tolist() == b.tolist()


def test_a_repetition_is_compared_as_its_file(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """It has the keys of what it repeats, so one store cannot hold both."""
    csv = fill_and_export(store, tmp_path, monkeypatch)
    capsys.readouterr()
    assert invoke(["compare", "one", str(csv)], monkeypatch) == 0
    out, err = capsys.readouterr()
    assert "+0.0 %" in out and "0 of 1 points changed significantly" in err
    assert "1 eager points of at least 20 µs: half differ by up to 0.0 %" in err


def fill_and_export(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    opened = Store.open(str(store), shipped=False)
    environment = Environment(device="test CPU", device_kind="cpu", versions={})
    run = opened.start_run("one", environment, command="test", planned_points=1)
    spec = MixerSpec(
        mixer="full_attention", num_q_heads=2, num_k_heads=1, num_v_heads=1,
        k_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    workload = Workload(op=MixerOp(spec), batch_size=1, new_tokens=64, dtype="fp32")
    point = Point(
        workload=workload,
        provider="sdpa_cpu",
        environment_id=environment.id,
        outcome=Outcome.OK,
        samples_s=[1e-3, 2e-3],
    )
    opened.record(point, run)
    opened.end_run(run)
    opened.close()
    csv = tmp_path / "points.csv"
    assert invoke(["export", str(csv)], monkeypatch) == 0
    return csv


def test_check_leaves_out_what_ships(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The planner puts it into the same store."""
    fill_and_export(store, tmp_path, monkeypatch)
    opened = Store.open(str(store), shipped=False)
    points = data_dir() / "measurements" / "cpu-epyc-2core.csv"
    load_points(opened, points, name="measurements/cpu-epyc-2core.csv")
    opened.close()
    capsys.readouterr()
    assert invoke(["check"], monkeypatch) == 0
    out, err = capsys.readouterr()
    assert "in 1 points" in err and "full_attention 2/1x8 sdpa_cpu" in out


def test_show_and_status_speak_json(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    fill_and_export(store, tmp_path, monkeypatch)
    capsys.readouterr()
    assert invoke(["show", "--json"], monkeypatch) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["provider"] == "sdpa_cpu" and row["median_s"] == pytest.approx(1.5e-3)
    assert invoke(["status", "--json"], monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["recorded"] == {"ok": 1}
    assert invoke(["show"], monkeypatch) == 0
    assert "sdpa_cpu" in capsys.readouterr().out


def test_a_run_that_fell_silent_may_have_been_killed(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    opened = Store.open(str(store), shipped=False)
    here = Environment(device="test cpu", device_kind="cpu", versions={})
    opened.start_run("killed", here, command="attn-profile run", planned_points=3)
    opened.close()
    assert invoke(["status"], monkeypatch) == 0
    assert "no point for" not in capsys.readouterr().out
    monkeypatch.setattr("profiler.cli.read.SILENT_S", 0.0)
    assert invoke(["status"], monkeypatch) == 0
    assert "the same command goes on from here" in capsys.readouterr().out


def test_dry_run_plans_and_touches_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    arguments = ["run", "--quick", "--device", "cpu", "--dry-run", "--json"]
    assert invoke(arguments, monkeypatch) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["points"] == sum(len(job["cells"]) for job in planned["jobs"])
    assert planned["estimated_s"] > 0 and planned["peak_bytes_at_least"] > 0
    assert not store.exists()


def test_list_says_what_is_usable_here(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert invoke(["list", "--device", "cpu", "--json"], monkeypatch) == 0
    rows = {(r["mixer"], r["provider"]): r["usable"] for r in json.loads(capsys.readouterr().out)}
    assert rows["full_attention", "sdpa_cpu"] == "yes"
    assert rows["full_attention", "sdpa_flash"] == "runs on cuda"


def test_doctor_names_what_is_here(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert invoke(["doctor", "--json"], monkeypatch) == 0
    found = {f["what"]: f for f in json.loads(capsys.readouterr().out)}
    assert found["torch"]["status"] == "ok" and "CPU" in found
    assert all(f["advice"] for f in found.values() if f["status"] != "ok")


@pytest.mark.parametrize(
    "command", [c.name or c.callback.__name__ for c in app.registered_commands]
)  # type: ignore[union-attr]
def test_every_command_has_help(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert invoke([command, "--help"], monkeypatch) == 0
    assert "Usage" in capsys.readouterr().out


def test_the_recorded_command_does_not_say_where_the_store_is() -> None:
    typed = ["run", "--store", "/home/me/x.db", "--quick", "--store=/tmp/y.db"]
    assert command_line(typed) == "attn-profile run --quick"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("8m", 480), ("1.5h", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
