"""Provenance: on what device and with which versions the times were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.decision.recommendation import Recommendation

if TYPE_CHECKING:
    from planner.decision.advisor import Advisor, Device
    from planner.store import Environment

PROFILE_COMMAND = "attn-profile run --lengths 1k:128k --ratios 0:1,1:1,3:1,5:1,7:1,1:0"
"""What measures a device as the recommendation needs it."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the device's figures rest on. `environment` holds driver, versions and switches of the
    newest measurements; empty where nothing was measured. Without an advisor the counts of points
    are None: not known, which is not none."""

    hardware: str
    hardware_basis: str
    hardware_source: str
    hardware_read_on: str
    measured_points: int | None
    imported_points: int | None
    measured_on: str
    environment: Mapping[str, str]
    advice: str
    profile_command: str


def provenance_of(found: Recommendation, advisor: Advisor | None) -> Provenance:
    hardware = found.deployment.hardware
    device = advisor.device(hardware.id) if advisor else None
    measured = device.measured_points if device else None
    return Provenance(
        hardware=hardware.name,
        hardware_basis=hardware.basis,
        hardware_source=hardware.source,
        hardware_read_on=hardware.read_on,
        measured_points=measured,
        imported_points=device.imported_points if device else None,
        measured_on=device.measured_on if device else "",
        environment=describe(device.environment) if device and device.environment else {},
        advice=_advice(found, device) if device and not measured else "",
        profile_command=PROFILE_COMMAND if device and not measured else "",
    )


def _advice(found: Recommendation, device: Device) -> str:
    """What a device without measurements of its own rests on, and how it gets them."""
    if device.imported_points:
        rest = (
            f"its times rest on {device.imported_points:,} points imported from others, on other "
            f"GPUs' scaled by the ratio of rooflines where those do not reach"
        )
    elif device.lenders:
        rest = (
            f"its times are those of {' and '.join(device.lenders[:2])}, scaled by the ratio of "
            f"rooflines"
        )
    else:
        rest = "its times are analytic, the roofline of the datasheet over a typical efficiency"
    return (
        f"Nothing was measured here on {found.hardware_name}: {rest}. On a machine that has one, "
        f"run the command below, then attn-profile export, and import the file here."
    )


def describe(environment: Environment) -> dict[str, str]:
    """An environment as names and texts, for people: device, versions, switches, plain facts."""
    found = {"device": environment.device, "kind": environment.device_kind}
    found.update({name: str(v) for name, v in environment.versions.items()})
    found.update({f"switch {name}": str(v) for name, v in environment.switches.items()})
    found.update(_facts(environment.facts))
    return found


def _facts(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as dotted names; long lists are counted, not printed."""
    found: dict[str, str] = {}
    for name, value in facts.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found.update(_facts(value, f"{key}."))
        elif isinstance(value, list | tuple) and len(value) > 8:
            found[key] = f"{len(value)} values"
        else:
            found[key] = f"{value:,.6g}" if isinstance(value, float) else str(value)
    return found
