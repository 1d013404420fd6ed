"""The article's claims: verdicts follow from the store, and change with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest

from planner.architecture import Architecture
from planner.catalog import load_model
from planner.errors import UnknownName, UsageError
from planner.quality.absolute import absolute_level, effective_contexts
from planner.quality.calibration import quality_calibration
from planner.quality.claims import CHECKS, Claim, Evidence, check_claims
from planner.quality.evidence import is_class, is_pure, with_retention
from planner.quality.features import MixFeatures
from planner.quality.retention import QualityModel
from planner.store import Store

VERDICTS = {
    "needle_drop": "refined",
    "shots_gap": "weakly supported",
    "multi_hop": "not shown",
    "summarization": "weakly supported",
    "placement": "refined",
    "three_to_one": "supported",
    "threshold": "not shown",
    "kimi_k2": "contradicted",
    "gemma_3": "supported",
    "qwen3_next": "supported",
}


@pytest.fixture(scope="module")
def found(store: Store) -> dict[str, Claim]:
    return {claim.id: claim for claim in check_claims(store)}


@pytest.fixture(scope="module")
def evidence(store: Store, comparisons: pd.DataFrame, quality_model: QualityModel) -> Evidence:
    return Evidence(
        rows=store.evidence(),
        comparisons=comparisons,
        model=quality_model,
        architecture=load_model,
    )


def test_verdicts_on_the_shipped_evidence(found: dict[str, Claim]) -> None:
    assert {id: claim.verdict for id, claim in found.items()} == VERDICTS
    assert set(found) == set(CHECKS)


def test_every_claim_says_how_much_and_on_what(
    found: dict[str, Claim], evidence: Evidence
) -> None:
    known = set(evidence.rows["id"])
    for claim in found.values():
        assert claim.effect and claim.caveat and claim.sources
        assert set(claim.row_ids) <= known
        assert any(ch.isdigit() for ch in claim.effect)


def test_other_evidence_gives_another_verdict(evidence: Evidence) -> None:
    pure = is_pure(evidence.comparisons) & is_class(evidence.comparisons, "retrieval")
    perfect = replace(evidence, comparisons=with_retention(evidence.comparisons, pure, 1.0))
    assert CHECKS["needle_drop"](perfect).verdict == "contradicted"
    poor = replace(
        evidence,
        comparisons=with_retention(
            evidence.comparisons, is_class(evidence.comparisons, "summarization"), 0.5
        ),
    )
    assert CHECKS["summarization"](poor).verdict == "contradicted"
    assert (
        CHECKS["three_to_one"](
            replace(
                evidence,
                comparisons=with_retention(
                    evidence.comparisons, evidence.comparisons["full_share"].between(0.2, 0.3), 0.5
                ),
            )
        ).verdict
        == "contradicted"
    )


def test_claims_on_models_are_read_from_their_layers(
    evidence: Evidence, build: Callable[..., Architecture]
) -> None:
    hybrid = replace(evidence, architecture=lambda _: build("gated_deltanet", "3:1"))
    assert CHECKS["kimi_k2"](hybrid).verdict == "supported"
    assert CHECKS["gemma_3"](hybrid).verdict == "contradicted"


def test_an_absolute_floor_is_answered_from_real_scores_or_refused(
    evidence: Evidence, build: Callable[..., Architecture]
) -> None:
    hybrid = MixFeatures.of(build("gated_deltanet", "3:1"))
    known = absolute_level(evidence.rows, "RULER", 131072, hybrid)
    assert known.covered and 0 < known.probability_at_least(85) < 1
    assert known.low <= known.median <= known.high
    rows = evidence.rows.set_index("id").loc[list(known.row_ids)]
    assert set(rows["kind"]) == {"recurrent"} and (rows["full_share"] >= 1 / 7).all()
    unknown = absolute_level(
        evidence.rows, "RULER", 131072, MixFeatures.of(build("sliding_window", "5:1"))
    )
    assert not unknown.covered and unknown.probability_at_least(0) == 0.0
    with pytest.raises(UnknownName, match="unknown benchmark 'NIAH'"):
        absolute_level(evidence.rows, "NIAH", 4096, hybrid)


def test_effective_context_is_where_ruler_stays_above_its_threshold(evidence: Evidence) -> None:
    table = effective_contexts(evidence.rows).set_index("model")
    # README of NVIDIA/RULER: Llama-3.1-8B 95.5, 93.8, 91.6, 87.4 up to 32K, 84.7 at 64K.
    assert table.loc["Llama3.1-8B", "effective"] == 32768
    assert table.loc["Jamba-1.5-large", "effective"] == 131072
    assert table.loc["Mamba-2.8B-slimpj", "effective"] == 0
    assert (table["effective"] <= table["longest"]).all()


def test_an_empty_store_decides_nothing() -> None:
    empty = Store.open("sqlite:///:memory:", shipped=False)
    found = {claim.id: claim for claim in check_claims(empty)}
    on_rows = [c for id, c in found.items() if id not in ("kimi_k2", "gemma_3", "qwen3_next")]
    assert {c.verdict for c in on_rows} == {"not shown"}
    assert all(c.effect == "the store has no row on it" and c.value is None for c in on_rows)
    with pytest.raises(UsageError, match="too little evidence"):
        quality_calibration(empty.comparisons())
