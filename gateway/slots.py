"""Pure: which workers to start on this machine, from the settings and what devices there are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from gateway.launchers import Slot
from gateway.settings import Settings
from shared import devices
from shared.errors import BadInput, ConfigError

_CPU_REPLICAS = 2


def plan(settings: Settings, *, gpus: Sequence[str], cores: int, mps: bool) -> tuple[Slot, ...]:
    """One slot per replica: a slice of `gpus` each, or, without any, the `cores` divided between CPU replicas.

    Raises ConfigError for a device that is not there, or more replicas than fit.
    """
    kind, _, pretended = settings.device.partition(":")
    if kind == "auto":
        kind = "cuda" if gpus else "mps" if mps else "cpu"
    if settings.gpus and kind != "cuda":
        raise ConfigError(f"--gpus: there is no NVIDIA GPU to choose from on device {kind}", param="gpus")
    per_model, count = settings.gpus_per_model, settings.num_gpus
    match kind:
        case "cuda":
            if not gpus:
                raise ConfigError(
                    "--device cuda: no NVIDIA GPU is visible; `replicast doctor` says more", param="device"
                )
            cut = devices.slices(_chosen(settings, gpus), per_model, count)
        case "mps":
            if not mps:
                raise ConfigError("--device mps: this is no machine with Apple's GPU", param="device")
            cut = devices.slices(("mps",), 1, count)
        case _:
            total = count or int(pretended or _CPU_REPLICAS) * per_model
            if pretended and count and count > int(pretended):
                raise ConfigError(
                    f"--num-gpus {count}: --device {settings.device} pretends {pretended}", param="num_gpus"
                )
            cut = devices.slices([str(index) for index in range(total)], per_model, total)
    prefix = "gpu" if kind in ("cuda", "mps") else kind
    threads = max(1, cores // len(cut))
    return tuple(Slot(f"{prefix}{index}", kind, names, threads) for index, names in enumerate(cut))


def further(present: Sequence[Slot], possible: Sequence[Slot], count: int) -> tuple[Slot, ...]:
    """`count` more slots than those `present`: of the `possible` ones where there are GPUs, else like the first.

    Raises BadInput where there are not enough GPUs.
    """
    names = {slot.name for slot in present}
    model = present[0]
    if model.kind in ("cuda", "mps"):
        free = [slot for slot in possible if slot.name not in names]
        if len(free) < count:
            most = len(present) + len(free)
            raise BadInput(f"There are GPUs for {most} replica{'s' * (most != 1)}.", param="replicas")
        return tuple(free[:count])
    unused = (index for index in itertools.count() if f"{model.kind}{index}" not in names)
    return tuple(
        Slot(f"{model.kind}{index}", model.kind, tuple(str(index) for _ in model.devices), model.threads)
        for index in itertools.islice(unused, max(0, count))
    )


def _chosen(settings: Settings, gpus: Sequence[str]) -> Sequence[str]:
    if missing := [name for name in settings.gpus if name not in gpus]:
        raise ConfigError(f"--gpus {missing[0]} is not visible; visible are {', '.join(gpus)}", param="gpus")
    return settings.gpus or gpus
