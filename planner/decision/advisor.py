"""Advisor: from a store to recommendations. What the command line and the dashboard both call.

>>> advisor = Advisor(Store.open())                                       # doctest: +SKIP
>>> advisor.recommend("rag", device_id="h200-sxm").winner                 # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import pandas as pd

from planner import catalog
from planner.architecture import Architecture
from planner.cost.donor import distance
from planner.cost.kernel import KernelCost
from planner.cost.model import CostModel, Deployment, ModelCost
from planner.cost.observations import Observation, observations
from planner.decision.recommend import recommend
from planner.decision.recommendation import Recommendation
from planner.decision.use_case import Intent, UseCase, load_use_case
from planner.errors import UnknownName
from planner.hardware import Hardware
from planner.quality.task_mix import TaskMix
from planner.store import Environment, Store
from planner.workload import Traffic

SERVING_MODE = "graph"
"""Engines run what they can in CUDA graphs."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device one can plan for: from the catalog, from measurements, or both.

    `environment` is that of its newest measurements, None if there are none. `lenders` are the
    measured GPUs from which times are carried over where it has none, the most alike first.
    """

    id: str
    hardware: Hardware
    environment: Environment | None
    measured_points: int
    imported_points: int
    measured_on: str
    lenders: tuple[str, ...] = ()

    @property
    def is_gpu(self) -> bool:
        """The catalog lists GPUs; another device is one if it was measured as one."""
        if self.environment is not None:
            return self.environment.device_kind != "cpu"
        return self.id in catalog.hardware_ids()

    @property
    def basis_note(self) -> str:
        """What figures for this device rest on, in a few words."""
        if self.measured_points:
            return f"{self.measured_points:,} points measured, newest {self.measured_on}"
        if self.imported_points:
            return f"{self.imported_points:,} points imported from others, none measured here"
        if self.lenders:
            return f"nothing measured: scaled by rooflines from {', '.join(self.lenders)}"
        return "analytic: datasheet roofline only, nothing measured"


class Advisor:
    """Answers questions from one store. Fits are kept, so reuse it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._kernels: dict[str, KernelCost] = {}
        self._cost_models: dict[tuple[object, ...], CostModel] = {}

    @cached_property
    def points(self) -> pd.DataFrame:
        """All kernel points with the id of their device."""
        frame = self.store.points()
        ids = {name: device_id_for(name) for name in frame["device"].unique()}
        return frame.assign(device_id=[ids[name] for name in frame["device"].tolist()])

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """All accuracy comparisons, as `Store.comparisons`."""
        return self.store.comparisons()

    @cached_property
    def sources(self) -> pd.DataFrame:
        """All citations, as `Store.sources`."""
        return self.store.sources()

    @cached_property
    def task_mix(self) -> TaskMix:
        return TaskMix.from_store(self.store)

    @cached_property
    def devices(self) -> dict[str, Device]:
        """Every device by id: measured ones first, then the rest of the catalog."""
        known = {id: catalog.load_hardware(id) for id in catalog.hardware_ids()}
        environments = self.store.environments()
        found = {}
        for id in [*dict.fromkeys(self.points["device_id"]), *known]:
            if id in found:
                continue
            rows = self.points[self.points["device_id"] == id]
            own = rows[rows["device_kind"] != "imported"].sort_values("measured_at")
            newest = environments[own["environment_id"].iloc[-1]] if len(own) else None
            hardware = known.get(id) or (newest and measured_hardware(id, newest))
            if not hardware:
                continue
            found[id] = Device(
                id=id,
                hardware=hardware,
                environment=newest,
                measured_points=len(own),
                imported_points=len(rows) - len(own),
                measured_on=str(own["measured_at"].iloc[-1])[:10] if len(own) else "",
            )
        lending = {id: replace(d, lenders=_lenders(d, found.values())) for id, d in found.items()}
        return dict(sorted(lending.items(), key=lambda item: -item[1].measured_points))

    def device(self, id: str | None = None) -> Device:
        """The device `id`; without one, the GPU with the most measurements, else any device.

        Raises: UnknownName, listing the devices there are.
        """
        if id is None:
            gpus = [d for d in self.devices.values() if d.id in catalog.hardware_ids()]
            return max(gpus, key=lambda d: (d.measured_points, d.imported_points))
        if id not in self.devices:
            raise UnknownName("hardware", id, self.devices)
        return self.devices[id]

    def observations(self, device: Device) -> list[Observation]:
        """The device's points as the cost model takes them: those of its newest environment, and
        what others measured on such a device. The model keeps the two apart."""
        rows = self.points[self.points["device_id"] == device.id]
        newest = device.environment.id if device.environment else ""
        theirs = rows["device_kind"] == "imported"
        return observations(rows[(rows["environment_id"] == newest) | theirs])

    def kernels(self, device: Device) -> KernelCost:
        """The fit of a device. What was not measured on a GPU is carried over from others."""
        if device.id not in self._kernels:
            self._kernels[device.id] = KernelCost.fit(
                self.observations(device),
                device.hardware,
                donors=partial(self._donors, device),
            )
        return self._kernels[device.id]

    def _donors(self, device: Device) -> Iterator[KernelCost]:
        for id in device.lenders:
            yield self.kernels(self.devices[id])

    def cost_model(
        self,
        device_id: str | None = None,
        *,
        weights_dtype: str | None = None,
        kv_dtype: str | None = None,
        tensor_parallel: int = 1,
        engine: str = catalog.DEFAULT_ENGINE,
        providers: Mapping[str, str] | None = None,
        mode: str = SERVING_MODE,
    ) -> CostModel:
        """The cost model of a device; dtypes default to what it computes in (CPUs: fp32).

        Asked for again, it is the same one, which remembers what it predicted.
        """
        device = self.device(device_id)
        compute = "bf16" if "bf16" in device.hardware.peak_flops else "fp32"
        deployment = Deployment(
            hardware=device.hardware,
            compute_dtype=compute,
            weights_dtype=weights_dtype or compute,
            kv_dtype=kv_dtype or compute,
            tensor_parallel=tensor_parallel,
            mode=mode,
            rules=catalog.load_engine(engine),
            providers=dict(providers or {}),
        )
        providers_key = tuple(sorted(deployment.providers.items()))
        dtypes = (deployment.weights_dtype, deployment.kv_dtype)
        key = (device.id, mode, *dtypes, tensor_parallel, engine, providers_key)
        if key not in self._cost_models:
            self._cost_models[key] = CostModel(self.kernels(device), deployment)
        return self._cost_models[key]

    def estimate(
        self, arch: Architecture, traffic: Traffic, *, device_id: str | None = None
    ) -> ModelCost:
        return self.cost_model(device_id).estimate(arch, traffic)

    def recommend(
        self,
        use_case: str | UseCase,
        *,
        intent: Intent = "build",
        model_id: str | None = None,
        model: Architecture | None = None,
        device_id: str | None = None,
        weights_dtype: str | None = None,
        kv_dtype: str | None = None,
        tensor_parallel: int = 1,
        mixers: Sequence[str] | None = None,
        ratios: Sequence[str] | None = None,
    ) -> Recommendation:
        """The recommendation for a use case, by id or as changed.

        The model is `model`, else that of the catalog by `model_id`, else the use case's.

        Raises: UnknownName for a use case, model, device or mixer that does not exist.
        """
        case = load_use_case(use_case) if isinstance(use_case, str) else use_case
        return recommend(
            case,
            model=model or catalog.load_model(model_id or case.model_for(intent)),
            intent=intent,
            cost_model=self.cost_model(
                device_id,
                weights_dtype=weights_dtype,
                kv_dtype=kv_dtype,
                tensor_parallel=tensor_parallel,
            ),
            task_mix=self.task_mix,
            mixers=mixers,
            ratios=ratios,
        )


def _lenders(device: Device, devices: Iterable[Device]) -> tuple[str, ...]:
    """The measured GPUs other than this one, the most alike first; none for a CPU."""
    if not device.is_gpu:
        return ()
    others = [
        d
        for d in devices
        if d.id != device.id and d.is_gpu and d.measured_points + d.imported_points
    ]
    others.sort(key=lambda d: distance(d.hardware, device.hardware))
    return tuple(d.id for d in others)


def device_id_for(name: str) -> str:
    """The catalog's id of a device the driver calls `name`; else a plain form of the name."""
    known = catalog.hardware_for_device(name)
    if known is not None:
        return known.id
    plain = "".join(ch if ch.isalnum() else "-" for ch in name.lower())
    return "-".join(part for part in plain.split("-") if part)


def measured_hardware(id: str, environment: Environment) -> Hardware | None:
    """A device that is not in the catalog, from the ceilings measured on it; None without them."""
    ceilings = environment.facts.get("ceilings")
    if not ceilings:
        return None
    return Hardware(
        id=id,
        name=environment.device,
        peak_flops={ceilings["dtype"]: float(ceilings["flops"])},
        bandwidth=float(ceilings["bandwidth"]),
        memory_bytes=int(environment.facts["memory_bytes"]),
        basis="measured",
        source="reference matrix product and copy measured on the device",
    )
