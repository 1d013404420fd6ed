"""The compile cache travels: what loading needs, nothing else, and never outside its place."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from planner.errors import EnvironmentProblem, UsageError
from profiler.compile_cache import TRITON, cache_dirs, load, save
from profiler.measure.environment import worker_environment


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    triton, inductor = tmp_path / "triton", tmp_path / "inductor"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(triton))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(inductor))
    return triton, inductor


def test_binaries_and_tuning_come_back_and_stages_do_not(
    caches: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton, inductor = caches
    (triton / "HASH").mkdir(parents=True)
    for name in ("k.cubin", "k.json", "k.autotune.json", "launcher.so", "k.ptx", "k.ttgir"):
        (triton / "HASH" / name).write_text(name)
    (inductor / "fx").mkdir(parents=True)
    (inductor / "fx" / "graph.py").write_text("code")
    archive = tmp_path / "cache.tar.gz"
    assert save(archive) == 5
    fresh = tmp_path / "fresh"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(fresh / "triton"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(fresh / "inductor"))
    assert load(archive) == 5
    found = {str(p.relative_to(fresh)) for p in fresh.rglob("*") if p.is_file()}
    assert found == {
        "triton/HASH/k.cubin", "triton/HASH/k.json", "triton/HASH/k.autotune.json",
        "triton/HASH/launcher.so", "inductor/fx/graph.py",
    }  # fmt: skip


def test_nothing_compiled_is_said(caches: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing compiled yet"):
        save(tmp_path / "cache.tar.gz")


def test_other_files_are_refused(caches: tuple[Path, Path], tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no archive")
    with pytest.raises(UsageError, match="not a compile cache"):
        load(text)
    with pytest.raises(EnvironmentProblem, match=r"missing\.tar"):
        load(tmp_path / "missing.tar")


@pytest.mark.parametrize(
    "name", ["elsewhere/file.json", "triton/of-older-tuning.json", f"{TRITON}/../../escape.json"]
)
def test_an_archive_cannot_write_elsewhere(
    name: str, caches: tuple[Path, Path], tmp_path: Path
) -> None:
    archive = tmp_path / "cache.tar.gz"
    with tarfile.open(archive, "w:gz") as out:
        member = tarfile.TarInfo(name)
        member.size = 2
        out.addfile(member, io.BytesIO(b"{}"))
    with pytest.raises(UsageError):
        load(archive)
    assert not list(tmp_path.rglob("escape.json"))


def test_workers_keep_what_they_tune_apart_from_what_others_did(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another program's choice for another shape is not measured; a user's own setting wins."""
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    place = worker_environment()["TRITON_CACHE_DIR"]
    assert place == str(cache_dirs()[TRITON]) and Path(place).name != "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert worker_environment()["TRITON_CACHE_DIR"] == str(tmp_path) == str(cache_dirs()[TRITON])
