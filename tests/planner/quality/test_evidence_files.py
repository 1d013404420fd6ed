"""The shipped files keep their rules, and a file that breaks one is refused in one line."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pandas as pd
import pytest

from planner.catalog import data_dir
from planner.errors import UsageError
from planner.mixers import MIXERS
from planner.store import Store
from planner.store.evidence import EvidenceFiles, load_published, read_evidence, replace_evidence
from planner.store.evidence_rules import (
    COLUMNS,
    MIXER_KINDS,
    as_cells,
    layer_share,
    parse_row,
)

PUBLISHED = data_dir() / "published"


@pytest.fixture(scope="module")
def files() -> EvidenceFiles:
    return read_evidence(PUBLISHED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped folder, free to spoil."""
    return Path(shutil.copytree(PUBLISHED, tmp_path / "published"))


def spoil(path: Path, line: int, cells: dict[str, str]) -> None:
    """Overwrites cells of a data row; row 2 is the first, as an editor counts."""
    with path.open(newline="", encoding="utf-8") as handle:
        lines = list(csv.reader(handle))
    for name, value in cells.items():
        lines[line - 1][lines[0].index(name)] = value
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, lineterminator="\n").writerows(lines)


def test_every_number_has_a_citation_and_every_citation_is_used(files: EvidenceFiles) -> None:
    cited = {row.source for row in files.rows}
    assert cited == {source.key for source in files.sources}
    assert all(source.source and source.read_on for source in files.sources)


def test_paper_mixers_have_the_kind_they_have_in_the_evidence() -> None:
    assert {name: MIXER_KINDS[name] for name in MIXERS} == {n: m.kind for n, m in MIXERS.items()}


def test_rows_survive_being_written_and_read(files: EvidenceFiles) -> None:
    for row in files.rows[::37]:
        assert parse_row(as_cells(row), "copy") == row


def test_known_defects_stay_mended(files: EvidenceFiles) -> None:
    rows = {row.id: row for row in files.rows}
    by_model = {row.model: row for row in files.rows if row.source == "hysparse"}
    assert (by_model["Hybrid SWA 44:5 80B"].n_full, by_model["Hybrid SWA 44:5 80B"].n_layers) == (
        5,
        49,
    )
    assert not [
        r
        for r in files.rows
        if r.source == "hymba" and r.layout == "parallel_heads" and r.ratio not in ("", "1:0")
    ]
    assert {r.mixer for r in files.rows} <= {"", *MIXER_KINDS}
    fitted = [rows[c.row] for c in files.comparisons if c.use != "show"]
    assert all(r.layout == "layers" and not r.metric.startswith("delta") for r in fitted)
    assert not any(r.mixer == "block_sparse" for r in fitted)
    assert not any("FAdecode" in r.model for r in fitted)
    kimi = next(r for r in files.rows if r.model == "Kimi Linear 3:1")
    assert kimi.full_share == pytest.approx(7 / 27)


def test_evaluated_windows_are_shorter_than_what_they_are_tested_at(files: EvidenceFiles) -> None:
    rows = {row.id: row for row in files.rows}
    windowed = [
        rows[c.row]
        for c in files.comparisons
        if c.use == "evaluate" and rows[c.row].mixer == "sliding_window"
    ]
    assert windowed
    assert all(r.window and (r.eval_length is None or r.window < r.eval_length) for r in windowed)


def test_no_evaluated_number_stands_twice(files: EvidenceFiles) -> None:
    rows = {row.id: row for row in files.rows}
    keys = [
        (r.source, r.model, r.params_b, r.task, r.eval_length, r.location)
        for r in (rows[c.row] for c in files.comparisons if c.use == "evaluate")
    ]
    assert len(keys) == len(set(keys))


def test_every_comparison_left_out_says_why(files: EvidenceFiles) -> None:
    assert all(c.reason for c in files.comparisons if c.use != "evaluate")


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"value": "about 40"}, "value must be a number between 0 and 100"),
        ({"value": "140"}, "value must be a number between 0 and 100, got '140'"),
        ({"value": "nan"}, "value must be a number"),
        ({"value": ""}, "value is blank"),
        ({"mixer": "mamba-2"}, "mixer must be one of"),
        ({"task_class": "needles"}, "task_class must be one of retrieval, icl"),
        ({"ratio": "3"}, "ratio must be linear:full such as 3:1, got '3'"),
        ({"ratio": "inf"}, "ratio must be linear:full"),
        ({"eval_length": "4K"}, "eval_length must be a whole number, got '4K'"),
        ({"window": "0"}, "window must be a number at least 1"),
        ({"n_layers": "8", "n_full": "9", "ratio": ""}, "n_full 9 is more than n_layers 8"),
        ({"n_layers": "8", "n_full": "4"}, "disagrees with 4 full layers of 8"),
        (
            {"n_layers": "4", "n_full": "1", "ratio": "3:1", "full_indices": "4"},
            "full_indices goes to 4",
        ),
        ({"source": "someone"}, "source 'someone' has no file sources/someone.toml"),
        ({"id": "gdn_iclr25-001"}, "stands twice"),
        ({"id": "=cmd()"}, "id may have letters"),
        ({"figure_read": "maybe"}, "figure_read must be one of yes, no"),
        ({"metric": "vibes"}, "metric must be one of"),
    ],
)
def test_a_broken_value_is_refused_with_its_row(
    folder: Path, cells: dict[str, str], reason: str
) -> None:
    spoil(folder / "quality.csv", 2, cells)
    with pytest.raises(UsageError) as error:
        read_evidence(folder)
    message = str(error.value)
    assert reason in message and "\n" not in message
    assert message.startswith("quality.csv row ")


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"row": "nobody-001"}, "no row 'nobody-001' in the evidence"),
        ({"control": ""}, "exactly one of control and assumed_control"),
        ({"use": "maybe"}, "use must be one of evaluate, fit, show"),
        ({"use": "show", "reason": ""}, "needs a reason"),
    ],
)
def test_a_broken_comparison_is_refused(folder: Path, cells: dict[str, str], reason: str) -> None:
    spoil(folder / "comparisons.csv", 2, cells)
    with pytest.raises(UsageError, match="comparisons.csv row 2: ") as error:
        read_evidence(folder)
    assert reason in str(error.value)


def test_a_perplexity_row_cannot_be_evaluated(folder: Path, files: EvidenceFiles) -> None:
    rows = {row.id: row for row in files.rows}
    line = next(
        i for i, c in enumerate(files.comparisons, start=2) if rows[c.row].metric == "perplexity"
    )
    spoil(folder / "comparisons.csv", line, {"use": "evaluate", "reason": ""})
    with pytest.raises(UsageError, match="metric perplexity is another scale"):
        read_evidence(folder)


def test_unknown_and_missing_columns_are_refused(folder: Path) -> None:
    path = folder / "quality.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("subclass", "sub_class", 1), encoding="utf-8")
    with pytest.raises(UsageError, match="unknown column 'sub_class'"):
        read_evidence(folder)
    path.write_text("\n".join(line.rsplit(",", 1)[0] for line in text.splitlines()))
    with pytest.raises(UsageError):
        read_evidence(folder)


def test_a_source_without_its_facts_is_refused(folder: Path) -> None:
    (folder / "sources" / "jamba.toml").write_text('title = "Jamba"\nsource = "x"\n')
    with pytest.raises(UsageError, match=r"sources/jamba.toml has no read_on"):
        read_evidence(folder)


def test_loading_is_once_per_content_and_replaces(files: EvidenceFiles) -> None:
    store = Store.open("sqlite:///:memory:", shipped=False)
    assert load_published(store)
    assert not load_published(store)
    assert len(store.evidence()) == len(files.rows)
    with store.begin() as session:
        replace_evidence(session, "published", files)
    assert len(store.evidence()) == len(files.rows)
    assert len(store.comparisons()) == len(files.comparisons)
    assert len(store.sources()) == len(files.sources)


def test_another_dataset_cannot_take_a_row_that_is_there(files: EvidenceFiles) -> None:
    store = Store.open("sqlite:///:memory:", shipped=False)
    load_published(store)
    with pytest.raises(UsageError, match="is already in the store"), store.begin() as session:
        replace_evidence(session, "mine", files)
    assert len(store.evidence()) == len(files.rows)


def test_points_are_the_difference(comparisons: pd.DataFrame) -> None:
    row = comparisons.set_index("id").loc["wang2025hybrid-001"]
    assert (row["value"], row["control_value"]) == (41.7, 42.3)
    assert row["points"] == pytest.approx(-0.6)


def test_share_comes_from_the_layer_list_before_the_ratio() -> None:
    assert layer_share("3:1", 27, 7) == pytest.approx(7 / 27)
    assert layer_share("3:1", None, None) == 0.25
    assert layer_share("", None, 2) is None
    assert len(COLUMNS) == len(set(COLUMNS))
