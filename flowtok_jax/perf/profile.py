"""A program's time by module: JAX's profiler, read back.

The profile has the seconds of each instruction of the compiled program; the program
says which module each instruction comes from. An instruction that the compiler fused
out of several counts for the module of its result. Seconds sum to more than the call
took where instructions ran side by side. Analytic FLOPs stand beside.
"""

import collections
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from flowtok_jax.perf import flops
from flowtok_jax.runtime.errors import UserError

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ", re.MULTILINE)
_ORIGIN = re.compile(r'op_name="([^"]*)"')
_CONTROL = re.compile(r" (?:while|conditional|call)\(")  # they hold the others' time

# The first pattern found in an instruction's path names its network.
NETWORKS = (
    ("clip", r"\bClipText\b(?!\.)"),
    ("projector", r"\bTextProjector\b"),
    ("dit", r"\bDiT\b"),
    ("encoder", r"\bTokenizer\.encode\b"),
    ("decoder", r"\bTokenizer\.decode\b"),
    ("text_decoder", r"\bTextDecoder\b"),
)
# Likewise its part.
PARTS = (
    ("modulation", r"/(?:modulation|time|indicator)\b"),
    ("attention", r"/attention\b"),
    ("mlp", r"/(?:mlp|fc1|fc2)\b"),
    # One block's out of all the blocks'.
    ("weights", r"jit\(dynamic_index_in_dim\)|dynamic_slice$"),
)
Module = tuple[str, str]  # network and part
REST = "rest"  # norms, residuals, first and last layers
_LAYERS = {
    "attention": ("qkv", "attention", "proj"),
    "mlp": ("fc1", "fc2", "w12", "w3"),
    "modulation": ("modulation",),
}


def module_of(path: str) -> Module:
    """Returns the network and part of an instruction's path.

    Without a network the instruction is the flow's own, `sampler`.
    """
    network = next((n for n, p in NETWORKS if re.search(p, path)), "sampler")
    if network == "sampler":
        return network, REST
    return network, next((n for n, p in PARTS if re.search(p, path)), REST)


def modules_of(hlo: str) -> dict[str, Module]:
    """Maps each instruction to its module; without loops and calls.

    An instruction without an origin, such as a copy that the compiler added, is
    `unnamed`, of the network that most others of its computation are of.
    """
    found = {}
    for computation in re.split(r"\n(?=\S)", hlo):
        named = {}
        unnamed = []
        for line in computation.splitlines():
            name = _INSTRUCTION.match(line)
            origin = _ORIGIN.search(line)
            if name and not _CONTROL.search(line):
                if origin:
                    named[name[1]] = module_of(origin[1])
                else:
                    unnamed.append(name[1])
        networks = collections.Counter(network for network, _ in named.values())
        most = networks.most_common(1)[0][0] if networks else "sampler"
        found |= named | dict.fromkeys(unnamed, (most, "unnamed"))
    return found


def _events(folder: Path) -> Iterator[tuple[str, float]]:
    """Yields (instruction, seconds) of everything that the profiler saw."""
    for path in sorted(folder.rglob("*.xplane.pb")):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    # Where the event is a kernel, its stat names the instruction.
                    name = dict(event.stats).get("hlo_op", event.name)
                    name = str(name).partition(" ")[0].lstrip("%")
                    yield name, event.duration_ns / 1e9


def _arithmetic(costs: dict[str, flops.Forward]) -> dict[Module, int]:
    """Sums FLOPs by network and part."""
    found = {}
    for network, cost in costs.items():
        for name, members in _LAYERS.items():
            found[network, name] = sum(cost.blocks.get(m, 0) for m in members)
        found[network, REST] = cost.outside
    return {module: count for module, count in found.items() if count}


def by_module(
    call: Callable[[], None],
    hlo: str,
    costs: dict[str, flops.Forward],
    devices: int,
) -> dict[str, Any]:
    """Runs the call once under the profiler: seconds and GFLOP by module.

    Args:
        hlo: the text of the program that it runs.
        costs: FLOPs of its networks, as perf/flops.py counts.
        devices: number that share the work; seconds are their mean.

    Raises:
        UserError: where the profile has nothing of the program.
    """
    known = modules_of(hlo)
    seconds = collections.Counter()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # tracing Python would slow the call itself
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            begun = time.perf_counter()
            call()
            wall = time.perf_counter() - begun
        for name, spent in _events(Path(folder)):
            if name in known:
                seconds[known[name]] += spent / devices
    if not seconds:
        raise UserError(
            "the profile names no instruction of the program on this device; run "
            "without --config.bench.profile=True"
        )
    work = _arithmetic(costs)
    modules = [
        {
            "network": network,
            "part": name,
            "seconds": round(seconds[network, name], 6),
            "share": round(seconds[network, name] / wall, 4),
            "gflop": work.get((network, name), 0) / 1e9,
        }
        for network, name in sorted(seconds.keys() | work.keys())
    ]
    return {
        "seconds": round(wall, 6),
        "instructions_seconds": round(sum(seconds.values()), 6),
        "modules": modules,
    }
