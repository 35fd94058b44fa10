"""What a figure was measured on: devices, cores, memory, versions."""

import importlib.metadata
import os
import pathlib
import platform
import resource
import sys
from collections.abc import Sequence
from typing import Any

import jax

GIB = 2**30
PACKAGES = ("jax", "jaxlib", "flax")
CPUINFO = pathlib.Path("/proc/cpuinfo")


def _processor() -> str:
    """The processor's name where the system gives one."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _host_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def describe(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """The machine, as it stands beside each figure."""
    return {
        "device_kind": devices[0].device_kind,
        "platform": devices[0].platform,
        "devices": len(devices),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_host_bytes() / GIB, 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def room_gib(devices: Sequence[jax.Device]) -> float:
    """Memory that one device may fill; CPU devices share that of the machine."""
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] / GIB
    return _host_bytes() / GIB / len(devices)


def peak_memory(devices: Sequence[jax.Device]) -> dict[str, float]:
    """The most that was in use since the process began, in GiB: of a device where it
    tells, else of the process.
    """
    stats = [device.memory_stats() or {} for device in devices]
    if all("peak_bytes_in_use" in s for s in stats):
        peak = max(s["peak_bytes_in_use"] for s in stats)
        return {"device_peak_gib": round(peak / GIB, 3)}
    unit = 1 if sys.platform == "darwin" else 1024  # of the field: bytes or KiB
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"process_resident_peak_gib": round(resident / GIB, 3)}
