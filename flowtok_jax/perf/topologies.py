"""Accelerators to compile for without having them: `v5e:16x16`, `v5p:2x2x2`, `a100:8`.

TPUs are described by libtpu, GPUs by jax's CUDA plugin and a file of targets/. Memory
is that of one device in GiB: on TPU the limit that libtpu's compiler states when a
program is too large (nominally 16, 32 and 95 GB); of an A100-SXM4-80GB the total that
CUDA reports, of which `XLA_CLIENT_MEM_FRACTION=0.95` lets jax take that part.
"""

import importlib.util
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from flowtok_jax.runtime.errors import UserError

TARGETS = pathlib.Path(__file__).parent / "targets"
EXTRA = "flowtok_jax[compile]"


class Kind(NamedTuple):
    """A kind of device: its memory, and an example of a topology."""

    platform: str
    hbm_gib: float
    example: str
    axes: int  # numbers in a topology's name
    part: float = 1.0  # share of the memory that programs may fill


KINDS = {
    "v5e": Kind("tpu", 15.75, "v5e:16x16", 2),
    "v6e": Kind("tpu", 31.25, "v6e:8x8", 2),
    "v5p": Kind("tpu", 95.74, "v5p:2x2x2", 3),
    "a100": Kind("cuda", 79.15, "a100:8", 1, part=0.95),
}
MODULES = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_plugins.xla_cuda12")}
A100S_A_HOST = 8

# No metadata server, no device, and no lock: nothing here runs on an accelerator.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
    # What libtpu looks for on a TPU's host, and complains of where it is not set.
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
# Autotuning needs the GPU. XLA rematerialises by itself beyond a limit, which it takes
# without a device to be 80 % of the memory * factor / 100: here 0.95 of it.
XLA_FLAGS = (
    "--xla_gpu_autotune_level=0",
    "--xla_gpu_enable_triton_gemm=false",
    "--xla_gpu_memory_limit_slop_factor=119",
)


def parse_topology(name: str) -> tuple[str, tuple[int, ...]]:
    """Splits a topology's name into kind and sizes.

    Raises:
        UserError: for another name, with the choices.
    """
    kind, _, sizes = name.partition(":")
    axes = KINDS[kind].axes if kind in KINDS else 0
    if not axes or not re.fullmatch("x".join([r"[1-9]\d*"] * axes), sizes):
        examples = ", ".join(k.example for k in KINDS.values())
        raise UserError(
            f"topology is {name!r}; expected KIND:SIZES with one of "
            f"{', '.join(KINDS)}, such as {examples}"
        )
    return kind, tuple(map(int, sizes.split("x")))


def prepare_environment() -> None:
    """Sets what compiling without the hardware needs; before any backend starts."""
    os.environ.update(ENVIRONMENT)
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS])
    jax.config.update("jax_platforms", "cpu")


def need(platform: str) -> None:
    """Raises a UserError where what a platform needs is not installed."""
    for module in MODULES[platform]:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # the package around the module is missing too
            found = None
        if found is None:
            raise UserError(
                f"compiling for {platform} needs the package {module}; "
                f"run: pip install '{EXTRA}'"
            )


def devices(name: str) -> Sequence[jax.Device]:
    """Describes the devices of a topology, which need not exist.

    `prepare_environment` has to be called before.

    Raises:
        UserError: where the topology cannot be, or an extra is not installed.
    """
    kind, sizes = parse_topology(name)
    platform = KINDS[kind].platform
    need(platform)
    if platform == "cuda":
        return _gpus(kind, *sizes)
    try:
        return topologies.get_topology_desc(name, platform="tpu").devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        raise UserError(
            f"topology {name} is refused by libtpu ({reason}); expected sizes such as "
            f"{KINDS[kind].example}"
        ) from error


def _gpus(kind: str, count: int) -> Sequence[jax.Device]:
    if count > A100S_A_HOST and count % A100S_A_HOST:
        raise UserError(
            f"topology is {kind}:{count}; expected at most {A100S_A_HOST} GPUs, or a "
            f"multiple of them: {A100S_A_HOST} a host"
        )
    hosts = math.ceil(count / A100S_A_HOST)
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=kind,
        target_config=(TARGETS / f"{kind}_80gb.txtpb").read_text(),
        topology=f"1x{hosts}x{count // hosts}",
    ).devices
