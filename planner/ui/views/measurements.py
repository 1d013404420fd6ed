"""Measurements: placeholder during development."""
