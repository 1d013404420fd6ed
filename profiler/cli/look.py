"""doctor and list: what is here to measure with."""

from __future__ import annotations

from planner.cli import emit_json
from profiler.cli.options import DeviceOption, JsonOption, require_torch
from profiler.draw import table


def doctor(as_json: JsonOption = False) -> None:
    """Says what is here, what is missing and how to get it, and what disturbs a measurement."""
    require_torch()
    from dataclasses import asdict

    from profiler.doctor import examine

    found = examine()
    if as_json:
        emit_json([asdict(f) for f in found])
        return
    table(
        [(f.what, f.status, f.value, f.advice) for f in found],
        ("what", "status", "value", "what to do"),
    )


def list_providers(
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Lists mixers and providers, and which can run on this device."""
    require_torch()
    from profiler.device import resolve_device
    from profiler.providers import families

    target = resolve_device(device)
    rows = []
    for family in families().values():
        for p in family.providers:
            why = p.missing()
            if target.kind not in p.devices:
                why = f"runs on {' and '.join(p.devices)}"
            rows.append(
                (family.name, p.name, ", ".join(p.phases), ", ".join(p.dtypes), why or "yes")
            )
    header = ("mixer", "provider", "phases", "dtypes", f"usable on {target.kind}")
    if as_json:
        emit_json(
            [
                dict(zip(("mixer", "provider", "phases", "dtypes", "usable"), r, strict=True))
                for r in rows
            ]
        )
        return
    table(rows, header)
