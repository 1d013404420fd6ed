"""Calibration: how wrong cost and accuracy have been, in one place.

    kernels      a kernel's points from its other points: inside the grid, beyond it, other shapes
    stacks       measured stacks of blocks from their single layers, and from single kernels
    imported     our times beside imported ones of the same operation: ratios, each with its causes
    end_to_end   published times and speed-ups of whole models against the cost model's

What the retention model missed is `planner.quality.calibration`'s. `attn-plan calibrate` and the
dashboard's Calibration page show all five; nothing here changes a prediction.
"""

from planner.calibration.end_to_end import (
    Published,
    batch_curve,
    end_to_end,
    load_published,
)
from planner.calibration.imported import beside_imported, ratios_by_pair
from planner.calibration.kernels import Scored, kernel_calibration
from planner.calibration.points import current
from planner.calibration.stacks import (
    as_the_model,
    kernel_sums,
    kernels_by_mode,
    stack_calibration,
    stack_residuals,
    stack_table,
)

__all__ = [
    "Published",
    "Scored",
    "as_the_model",
    "batch_curve",
    "beside_imported",
    "current",
    "end_to_end",
    "kernel_calibration",
    "kernel_sums",
    "kernels_by_mode",
    "load_published",
    "ratios_by_pair",
    "stack_calibration",
    "stack_residuals",
    "stack_table",
]
