"""The machine that a figure was measured on: devices, cores, memory, versions, peaks.

Peak rates are those of dense bfloat16 matrix products, without structured sparsity.
Sources, as of 2025: TPU, per chip, cloud.google.com/tpu/docs (pages v4, v5e, v5p, v6e);
NVIDIA, the products' data sheets, whose rates with sparsity are halved here.
"""

import importlib.metadata
import os
import pathlib
import platform
import re
import resource
import sys
from collections.abc import Sequence
from typing import Any

import jax

GIB = 2**30
PACKAGES = ("jax", "jaxlib", "flax")
CPUINFO = pathlib.Path("/proc/cpuinfo")
# The first pattern found in a device's kind, as JAX names it, counts.
TFLOPS_BF16 = (
    (r"^TPU v4$", 275.0),
    (r"^TPU v5 ?(lite|e)", 197.0),
    (r"^TPU v5p?$", 459.0),
    (r"^TPU v6 ?(lite|e)", 918.0),
    (r"\bA100\b", 312.0),
    (r"\bH100 NVL", 835.5),
    (r"\bH100 PCIe", 756.0),
    (r"\bH100\b", 989.5),  # SXM
    (r"\bGH200\b", 989.5),
    (r"\bH200 NVL", 835.5),
    (r"\bH200\b", 989.5),
    (r"\bB200\b", 2250.0),
    (r"\bA10G\b", 70.0),
    (r"\bA10\b", 125.0),
    (r"\bL40S\b", 362.0),
    (r"\bL4\b", 121.0),
)


def _processor() -> str:
    """Returns the processor's name, or at least its architecture."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _host_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def describe_machine(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Describes the machine, for the record beside each figure."""
    return {
        "device_kind": devices[0].device_kind,
        "platform": devices[0].platform,
        "devices": len(devices),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),  # those that this process may use
        "memory_gib": round(_host_bytes() / GIB, 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def room_gib(devices: Sequence[jax.Device]) -> float:
    """Returns the memory that one device may fill; CPU devices share the machine's."""
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] / GIB
    return _host_bytes() / GIB / len(devices)


def peak_memory_gib(devices: Sequence[jax.Device]) -> dict[str, float]:
    """Returns the most memory in use since the process began, in GiB.

    A device's where the device tells, else the process's.
    """
    stats = [device.memory_stats() or {} for device in devices]
    if all("peak_bytes_in_use" in s for s in stats):
        peak = max(s["peak_bytes_in_use"] for s in stats)
        return {"device_peak_gib": round(peak / GIB, 3)}
    return {"process_resident_peak_gib": round(process_peak_bytes() / GIB, 3)}


def process_peak_bytes() -> int:
    """Returns the most memory that this process has held, mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes or in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_tflops(device_kind: str) -> float | None:
    """Returns a device's peak, None for a CPU or another device without an entry."""
    for pattern, tflops in TFLOPS_BF16:
        if re.search(pattern, device_kind):
            return tflops
    return None
