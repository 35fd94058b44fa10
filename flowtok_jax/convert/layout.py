"""Mapping of arrays from PyTorch's names and layouts to ours and back, by rules."""

import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.convert.rules import Rule
from flowtok_jax.weights.safetensors import Shape


def _patch_to_ours(x: np.ndarray) -> np.ndarray:
    # [out 3 p p] -> [p p 3 out] -> [p*p*3 out], the order of `patchify`
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _patch_to_source(x: np.ndarray) -> np.ndarray:
    side = math.isqrt(x.shape[0] // 3)
    return x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)  # [out 3 p p]


# kind -> (the source's layout to ours, our layout to the source's); numpy makes views
# of all of them but a patch's, which costs a copy
_KINDS: dict[str, tuple[Callable, Callable]] = {
    "same": (lambda x: x, lambda x: x),
    "vector": (lambda x: x[0, 0], lambda x: x[None, None]),
    "weights": (lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None]),
    "scale": (lambda x: x[:, 0, 0], lambda x: x[:, None, None]),
    "dense": (lambda x: x.T, lambda x: x.T),
    "dense1x1": (lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),
    "patch": (_patch_to_ours, _patch_to_source),
    "conv": (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
}


def to_ours(
    rules: Sequence[Rule], targets: Mapping[str, Shape], state: Mapping[str, Any]
) -> Params:
    """Converts a state dict that has every array of the rules to float32 parameters.

    Args:
        targets: shapes of our leaves, by path.
    """
    leaves = {r.target: _fill(r, targets[r.target], state) for r in rules}
    return unflatten_dict(leaves, sep="/")


def to_source(
    rules: Sequence[Rule], leaves: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Converts leaves by path to a state dict; the inverse of `to_ours`."""
    state = {}
    for rule in rules:
        leaf = np.asarray(leaves[rule.target])
        back = _KINDS[rule.kind][1]
        for name, index in _pieces(rule, leaf.shape):
            state[name] = np.asarray(back(leaf[index]))
    return state


def source_shapes(
    rules: Sequence[Rule], targets: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Returns names and shapes of the state dict that `to_ours` takes."""
    # Views of one zero: indexing and transposing them costs nothing.
    zeros = {path: np.broadcast_to(np.float32(0), s) for path, s in targets.items()}
    return {name: array.shape for name, array in to_source(rules, zeros).items()}


def check_rules(name: str, rules: Sequence[Rule], targets: Mapping[str, Shape]) -> None:
    """Refuses a table of rules that misses a leaf of ours or sets an unknown one.

    Raises:
        ValueError: naming the leaves; not a UserError, because the table is ours.
    """
    ruled = {rule.target for rule in rules}
    if ruled != targets.keys():
        raise ValueError(
            f"convert/rules.py does not fit our {name!r}: no rule sets "
            f"{sorted(targets.keys() - ruled)}, and nothing is called "
            f"{sorted(ruled - targets.keys())}"
        )


def find_dropped(
    patterns: Sequence[tuple[str, str]], names: Iterable[str]
) -> dict[str, str]:
    """Returns name -> reason of the names that a (regex, reason) fits as a whole."""
    return {
        name: why
        for name in names
        for pattern, why in patterns
        if re.fullmatch(pattern, name)
    }


def count_blocks(template: str, names: Iterable[str]) -> int:
    """Counts the blocks with names that begin as in the template; at least 1."""
    # At least 1, so that the names of block 0 are reported as missing.
    before, after = map(re.escape, template.split("{}"))
    found = (re.match(rf"{before}(\d+){after}", name) for name in names)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def log_dropped(what: str, dropped: Mapping[str, str]) -> None:
    """Logs one line for each reason."""
    names = defaultdict(list)
    for name, why in dropped.items():
        names[why].append(name)
    for why, found in names.items():
        shown = found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"
        logging.info("%s: not converted: %s (%s)", what, shown, why)


def _pieces(rule: Rule, shape: Shape) -> Iterator[tuple[str, tuple]]:
    """Yields source names of a rule, each with its index in our leaf of that shape."""
    is_stacked = "{}" in rule.sources[0]
    parts = len(rule.sources)
    for block in range(shape[0] if is_stacked else 1):
        for part, source in enumerate(rule.sources):
            # Blocks are stacked on our first axis, joined layers on our last.
            index: tuple = (block,) if is_stacked else ()
            if parts > 1:
                width = shape[-1] // parts
                index += (..., slice(part * width, (part + 1) * width))
            yield source.format(block), index


def _fill(rule: Rule, shape: Shape, state: Mapping[str, Any]) -> np.ndarray:
    """Makes our array of one rule: a view of the source if it has a single piece."""
    forth = _KINDS[rule.kind][0]
    pieces = list(_pieces(rule, shape))
    if len(pieces) == 1 and not pieces[0][1]:
        return np.asarray(forth(np.asarray(state[pieces[0][0]])), np.float32)
    array = np.empty(shape, np.float32)
    # One piece at a time: np.stack would hold all of them twice.
    for name, index in pieces:
        array[index] = forth(np.asarray(state[name]))
    return array
