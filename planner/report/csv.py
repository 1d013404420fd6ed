"""CSV for spreadsheets: tables whose text cells cannot run as formulas.

A cell that starts with = + - @ or a control character is code to a spreadsheet; names of imported
models are somebody else's text. Such cells get a leading apostrophe, numbers stay as they are.
Source: OWASP, "CSV Injection", read 2026-11.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

_TRIGGERS = ("=", "+", "-", "@", "\t", "\r", "\n")


def safe_csv(frame: pd.DataFrame) -> str:
    """The frame as CSV, header first, without the index; full precision."""
    inert = frame.rename(columns=_inert)
    for position in range(inert.shape[1]):
        column = inert.iloc[:, position]
        if not pd.api.types.is_numeric_dtype(column):
            inert.isetitem(position, [_inert(value) for value in column])
    return inert.to_csv(index=False, lineterminator="\n")


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_TRIGGERS) else value
