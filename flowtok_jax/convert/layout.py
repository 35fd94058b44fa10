"""Arrays from PyTorch's names and layouts to ours and back, by a table of rules."""

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
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _patch_to_source(x: np.ndarray) -> np.ndarray:
    side = math.isqrt(x.shape[0] // 3)
    return x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


# kind -> (the source's layout to ours, and back); views wherever numpy can
_KINDS: dict[str, tuple[Callable, Callable]] = {
    "same": (lambda x: x, lambda x: x),
    "vector": (lambda x: x[0, 0], lambda x: x[None, None]),
    "weights": (lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None]),
    "dense": (lambda x: x.T, lambda x: x.T),
    "dense1x1": (lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),
    "patch": (_patch_to_ours, _patch_to_source),
    "conv": (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
}


def to_ours(
    rules: Sequence[Rule], targets: Mapping[str, Shape], state: Mapping[str, Any]
) -> Params:
    """Our float32 parameters, nested, from a state dict that has all the rules name.

    Args:
        targets: shapes of our leaves, by path.
    """
    leaves = {r.target: _fill(r, targets[r.target], state) for r in rules}
    return unflatten_dict(leaves, sep="/")


def to_source(
    rules: Sequence[Rule], leaves: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The inverse of `to_ours`, of leaves by path."""
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
    """Names and shapes of the state dict that `to_ours` takes."""
    # Views of one zero: indexing and transposing them costs nothing.
    zeros = {path: np.broadcast_to(np.float32(0), s) for path, s in targets.items()}
    return {name: array.shape for name, array in to_source(rules, zeros).items()}


def check_rules(name: str, rules: Sequence[Rule], targets: Mapping[str, Shape]) -> None:
    """Refuses a table that does not set every leaf of ours, or sets another.

    Raises:
        ValueError: naming the leaves; the table is ours, so that this is a bug.
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
    """The names that a (regex of the whole name, reason) fits, each with the reason."""
    return {
        name: why
        for name in names
        for pattern, why in patterns
        if re.fullmatch(pattern, name)
    }


def log_dropped(what: str, dropped: Mapping[str, str]) -> None:
    """One line a reason."""
    names = defaultdict(list)
    for name, why in dropped.items():
        names[why].append(name)
    for why, found in names.items():
        shown = found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"
        logging.info("%s: not converted: %s (%s)", what, shown, why)


def _pieces(rule: Rule, shape: Shape) -> Iterator[tuple[str, tuple]]:
    """Source names of a rule, each with its place in our leaf of that shape."""
    is_stacked, parts = "{}" in rule.sources[0], len(rule.sources)
    for block in range(shape[0] if is_stacked else 1):
        for part, source in enumerate(rule.sources):
            index: tuple = (block,) if is_stacked else ()
            if parts > 1:
                width = shape[-1] // parts
                index += (..., slice(part * width, (part + 1) * width))
            yield source.format(block), index


def _fill(rule: Rule, shape: Shape, state: Mapping[str, Any]) -> np.ndarray:
    """Our array of one rule: a view of the source, or one new array of all parts."""
    forth = _KINDS[rule.kind][0]
    pieces = list(_pieces(rule, shape))
    if len(pieces) == 1 and not pieces[0][1]:
        return np.asarray(forth(np.asarray(state[pieces[0][0]])), np.float32)
    array = np.empty(shape, np.float32)
    for name, index in pieces:
        array[index] = forth(np.asarray(state[name]))
    return array
