"""The declarative base that every table of the store shares."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    """One metadata for all tables; the schema's version counts changes to any of them."""
