"""The claims page and your own results on the evidence page, without a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from planner.catalog import load_model
from planner.formats.evidence_import import EvaluatedModel, import_evidence
from planner.formats.results import read_scores
from planner.quality.claims import CHECKS, check_claims
from planner.store import Store

ROOT = Path(__file__).parents[2]
NASTY = '=HYPERLINK("http://x")<script>alert(1)</script> **bold** $x$ :red[y]'


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The published evidence and an import with markup in its names; nothing cached."""
    monkeypatch.setattr("planner.store.shipped.measurement_files", lambda root: [])
    monkeypatch.setenv("ATTN_STORE", str(tmp_path / "store.db"))
    st.cache_data.clear()
    st.cache_resource.clear()
    opened = Store.open()
    path = tmp_path / "r.json"
    path.write_text(
        json.dumps({"results": {"mmlu": {"acc,none": 0.6}}, "n-shot": {}, "model_name": NASTY})
    )
    full = load_model("llama-3.1-8b")
    mine, control = (
        EvaluatedModel(architecture=arch, files=(read_scores(path),), params_b=8.0)
        for arch in (full.with_mixer("kda", "3:1"), full)
    )
    import_evidence(opened, "mine", mine, control=control)
    yield opened
    st.cache_data.clear()
    st.cache_resource.clear()


def page(name: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
    app.run()
    app.switch_page(f"planner/ui/views/{name}.py").run()
    assert not app.exception and not app.error
    return app


def test_every_claim_stands_with_its_verdict_and_its_rows(store: Store) -> None:
    app = page("claims")
    claims = check_claims(store)
    text = "\n".join(m.value for m in app.markdown).replace("\\", "")
    assert len(claims) == len(CHECKS)
    for claim in claims:
        assert claim.claim in text and claim.effect[1:] in text
    shown = [len(d.value) for d in app.dataframe]
    assert shown == [len(c.row_ids) for c in claims if c.row_ids]


def recommended(**parameters: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
    app.query_params.update(use_case="rag", hardware="h200-sxm", prompt="4k", **parameters)
    app.run()
    assert not app.exception
    return app


def test_a_score_floor_in_the_link_decides_or_is_refused_in_one_line(store: Store) -> None:
    app = recommended(floor="0", score_floor="RULER>=99.9@128k")
    text = "\n".join(m.value for m in app.markdown).replace("\\", "")
    assert "Nothing meets the limits" in text
    assert "Score floor" in text and "P(RULER >= 99.9 at 128k) = " in text
    wrong = recommended(score_floor="NIAH>=85@4k")
    assert len(wrong.error) == 1
    assert "unknown benchmark 'NIAH'" in wrong.error[0].value.replace("\\", "")


def test_your_own_results_are_named_and_markup_in_them_is_literal(store: Store) -> None:
    app = page("evidence")
    line = next(m.value for m in app.markdown if "mine" in m.value)
    assert "compared with its control" in line and "imported" in line
    bare = re.sub(r"\\.", "", line)
    assert not re.search(r"<|\*\*bold|\$|:red", bare)
    effective = next(d.value for d in app.dataframe if "effective" in d.value)
    assert (effective["effective"] <= effective["longest"]).all()
