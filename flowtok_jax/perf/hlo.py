"""Traffic of a compiled program between devices, read from its optimised HLO.

Bytes are those of one device: of a collective's operands or of its result, whichever is
larger, each time that the collective runs. A loop's body counts as often as it runs: by
XLA's known trip count, else by the constant that its condition compares a counter with,
else once.
"""

import math
import re
from collections import defaultdict

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
BITS = {"pred": 8, "bf": 16, "f8": 8, "s4": 4, "u4": 4}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"^(.*?)\s([a-z][a-z0-9\-]*)\((.*)$")
_SHAPE = re.compile(r"\b(pred|bf16|f8\w*|[sufc]\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}")
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')


def _bytes(text: str) -> int:
    """Sums the bytes of all arrays named in an HLO type string."""
    total = 0
    for kind, sizes in _SHAPE.findall(text):
        bits = next((b for name, b in BITS.items() if kind.startswith(name)), None)
        # f32, s8 and the like end in their width.
        bits = bits or int(re.search(r"\d+$", kind).group())
        total += math.prod(int(n) for n in sizes.split(",") if n) * bits // 8
    return total


class _Program:
    """Computations, who calls them how often, and the collectives in them."""

    def __init__(self, hlo: str):
        self.entry = ""
        self.callers = defaultdict(list)  # computation -> (caller, runs a call)
        self.found = []  # (key, computation, kind, bytes) of each collective
        self._sizes: dict[str, int] = {}  # of each instruction's result
        self._constants = defaultdict(list)
        self._below = set()  # computations that compare by "less than"
        computation = ""
        for line in hlo.splitlines():
            if opened := _COMPUTATION.match(line):
                computation = opened[2]
                self.entry = computation if opened[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                self._instruction(computation, found[1], found[2])

    def _instruction(self, computation: str, name: str, rest: str) -> None:
        parts = _OPERATION.match(rest)
        if not parts:
            return
        result, operation, tail = parts.groups()
        self._sizes[name] = _bytes(result)
        if constant := _CONSTANT.match(rest):
            self._constants[computation].append(int(constant[1]))
        if operation == "compare" and "direction=LT" in tail:
            self._below.add(computation)
        trips = self._trips(tail) if operation == "while" else 1
        called = _CALLED.findall(tail)
        for branches in _BRANCHES.findall(tail):
            called += re.findall(r"[\w.\-]+", branches)
        for other in called:
            self.callers[other].append((computation, trips))
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            self._collective(computation, kind, operation, name, tail)

    def _trips(self, tail: str) -> int:
        """Returns how often a loop runs, of a scan, which counts from 0 by 1."""
        if known := _TRIPS.search(tail):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", tail)[1]
        bounds = self._constants[condition]
        return bounds[0] if condition in self._below and len(bounds) == 1 else 1

    def _collective(self, computation, kind, operation, name, tail) -> None:
        operands = re.findall(r"%([\w.\-]+)", tail.partition(")")[0])
        reads = sum(self._sizes.get(operand, 0) for operand in operands)
        gives = self._sizes[name]
        if operation.endswith("-start") and gives > reads:
            gives -= reads  # its type holds the operands too
        if kind == "collective-permute":  # its type holds a context beside
            gives = reads
        if "all-reduce-scatter" in computation:  # libtpu's form of it
            kind = "reduce-scatter"
        # libtpu repeats an overlapped collective in several fusions, on one channel
        channel = re.search(r"channel_id=(\d+)", tail)
        key = f"channel {channel[1]}" if channel else name
        self.found.append((key, computation, kind, max(reads, gives)))

    def runs(self, computation: str) -> int:
        """Counts the runs of a computation in one run of the program."""
        if computation == self.entry:
            return 1
        return sum(n * self.runs(caller) for caller, n in self.callers[computation])


def count(hlo: str) -> dict[str, dict[str, int]]:
    """Counts the collectives that a program executes: {kind: {"count", "bytes"}}."""
    program = _Program(hlo)
    # A collective repeated on one channel counts where it runs most.
    once = {}
    for key, computation, kind, size in program.found:
        runs = program.runs(computation)
        if key not in once or once[key][1:] < (runs, size):
            once[key] = kind, runs, size
    totals: dict[str, dict[str, int]] = {}
    for kind, runs, size in once.values():
        entry = totals.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += runs
        entry["bytes"] += runs * size
    return dict(sorted(totals.items()))
