"""Models: what the model controls accept, a catalog id or a config.json on this machine."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from planner import catalog
from planner.architecture import Architecture
from planner.formats.huggingface import is_path, read_config, stored_weights
from planner.ui.text import plain


def load(model: str) -> Architecture:
    """Raises: UnknownName for no model of the catalog; of a path, what `read_config` raises."""
    return read_config(Path(model)) if is_path(model) else catalog.load_model(model)


def loadable(model: str) -> str:
    """`model`, once it is known to load. Raises as `load`."""
    load(model)
    return model


def quantised_note(model: str, weights_dtype: str | None) -> str:
    """That a config.json keeps quantised weights, where no dtype was chosen for them; else ""."""
    method = stored_weights(Path(model)) if weights_dtype is None and is_path(model) else None
    if method is None:
        return ""
    return (
        f"{model} stores quantised weights ({method}); they count as unquantised unless "
        "Weights, under data types or deployment, says otherwise"
    )


def show_quantised_note(model: str, weights_dtype: str | None) -> None:
    note = quantised_note(model, weights_dtype)
    if note:
        st.info(plain(f"{note}."), icon=":material/info:")
