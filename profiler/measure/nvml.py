"""What the driver says of a GPU: clocks, power, temperature, throttling, processes, energy.

Every reading is None where the driver does not give it; without a driver there is no `Nvml`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

THROTTLE_BITS = {
    "power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "hw_power_brake": 0x80,
}
"""nvmlClocksEventReasons that slow a kernel down (idle and user settings left out)."""


class Nvml:
    """One GPU through NVML. Open with `Nvml.open`, which returns None without a driver."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    @classmethod
    def open(cls, index: int) -> Nvml | None:
        """The GPU that CUDA calls `index`, through CUDA_VISIBLE_DEVICES."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return cls(pynvml, _handle(pynvml, index))
        except pynvml.NVMLError:
            return None

    def _read(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return ask(self._handle, *arguments)
        except self._library.NVMLError:
            return None

    def driver_version(self) -> str:
        return str(self._library.nvmlSystemGetDriverVersion())

    def energy_j(self) -> float | None:
        """Energy since the driver loaded; the counter moves every 20 to 100 ms."""
        millijoules = self._read(self._library.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else millijoules / 1000

    def telemetry(self) -> dict[str, Any]:
        """SM clock, power, temperature and what throttles, now."""
        n = self._library
        power = self._read(n.nvmlDeviceGetPowerUsage)
        return {
            "sm_mhz": self._read(n.nvmlDeviceGetClockInfo, n.NVML_CLOCK_SM),
            "power_w": None if power is None else round(power / 1000, 1),
            "temperature_c": self._read(n.nvmlDeviceGetTemperature, n.NVML_TEMPERATURE_GPU),
            "throttle": self.throttle_reasons(),
        }

    def throttle_reasons(self) -> list[str]:
        reasons = self._read(self._library.nvmlDeviceGetCurrentClocksEventReasons) or 0
        return [name for name, bit in THROTTLE_BITS.items() if reasons & bit]

    def throttled(self) -> bool:
        """Whether anything slows kernels down at the moment."""
        return bool(self.throttle_reasons())

    def facts(self) -> dict[str, Any]:
        """What disturbs or limits a measurement and does not change within a run."""
        n = self._library
        limit = self._read(n.nvmlDeviceGetEnforcedPowerLimit)
        full = self._read(n.nvmlDeviceGetPowerManagementDefaultLimit)
        mig = self._read(n.nvmlDeviceGetMigMode)
        return {
            "power_limit_w": None if limit is None else limit / 1000,
            "power_default_w": None if full is None else full / 1000,
            "max_sm_mhz": self._read(n.nvmlDeviceGetMaxClockInfo, n.NVML_CLOCK_SM),
            "mig": None if mig is None else bool(mig[0]),
            "ecc": _first_true(self._read(n.nvmlDeviceGetEccMode)),
            "persistence": _as_bool(self._read(n.nvmlDeviceGetPersistenceMode)),
        }

    def other_processes(self) -> list[int]:
        """Process ids with a context on this GPU, our own left out."""
        running = self._read(self._library.nvmlDeviceGetComputeRunningProcesses) or []
        return sorted({p.pid for p in running} - {os.getpid()})


def _as_bool(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _first_true(pair: Any) -> bool | None:
    return None if pair is None else bool(pair[0])


def _handle(library: Any, index: int) -> Any:
    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v.strip()]
    if not visible:
        return library.nvmlDeviceGetHandleByIndex(index)
    name = visible[index].strip()
    if name.isdigit():
        return library.nvmlDeviceGetHandleByIndex(int(name))
    return library.nvmlDeviceGetHandleByUUID(name)
