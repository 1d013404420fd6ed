"""Donor: another device whose measured times stand in for those nobody took on this one.

A time is carried over by the ratio of the two devices' rooflines for the call. How wrong that is
was measured: among the imported tables of four devices (A100, H100, H200, B200) every one was
predicted from each other one. The widths below are the eightieth percentiles of those errors, all
pairs weighing the same; `tests/planner/cost/test_other_gpus.py` makes them again.

H100 and H200 are one die with different memory, so their pair says how wrong the roofline is;
other pairs also differ in kernels and instructions, and in how old their software is.
"""

from __future__ import annotations

import math

from planner.cost.analytic import kind_of
from planner.hardware import Hardware
from planner.workload import Op

CARRIED = {
    ("full", "prefill"): (0.52, 0.46),
    ("full", "decode"): (0.19, 0.97),
    ("windowed", "prefill"): (0.34, 0.44),
    ("windowed", "decode"): (0.34, 0.42),
    ("recurrent", "prefill"): (0.35, 0.66),
    ("recurrent", "decode"): (0.24, 0.24),
    ("dense", "prefill"): (0.14, 0.28),
    ("experts", "prefill"): (0.07, 0.43),
    ("short_convolution", "prefill"): (0.29, 0.64),
    ("short_convolution", "decode"): (0.20, 0.29),
    ("all_reduce", "prefill"): (0.06, 0.44),
}
"""80 % half-width of the log time that carrying adds: (to the same die, to another)."""


def carried_half_width(op: Op, phase: str, here: Hardware, there: Hardware) -> float:
    """Training is taken as prefill, a stack as full attention, the widest of its parts."""
    kind = kind_of(op)
    same, other = CARRIED.get((kind, phase), CARRIED[kind, "prefill"])
    return same if is_same_die(here, there) else other


def is_same_die(one: Hardware, other: Hardware) -> bool:
    def die(h: Hardware) -> tuple[str, int]:
        return h.compute_capability, h.compute_units

    return one.compute_capability != "" and die(one) == die(other)


def distance(one: Hardware, other: Hardware) -> float:
    """How unlike two devices are: doublings of bandwidth and of arithmetic between them."""
    rates = (one.bandwidth, other.bandwidth), (_arithmetic(one), _arithmetic(other))
    return sum(abs(math.log2(a / b)) for a, b in rates)


def _arithmetic(hardware: Hardware) -> float:
    """FLOP/s in bf16, else in the dtype that the device is fastest in."""
    return hardware.peak_flops.get("bf16") or max(hardware.peak_flops.values())
