"""Conversion of the model's released groups to our parameters and back.

A state dict maps names to arrays in PyTorch's layout. The groups with a release are
"t2i" (FlowTok: projector, align head and DiT), "tokenizer" (FlowTiTok) and "clip" (the
text tower, by Hugging Face names). The tables in `rules.py` must use every name or drop
it for a stated reason, set every leaf of ours, and fit every shape.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.convert import rules
from flowtok_jax.convert.layout import (
    check_rules,
    count_blocks,
    find_dropped,
    log_dropped,
    source_shapes,
    to_ours,
    to_source,
)
from flowtok_jax.models.build import Nets
from flowtok_jax.models.clip import ClipText
from flowtok_jax.models.dit import SIZES, AverageDiT, DiT, SharedDiT
from flowtok_jax.models.layers import rope_tables, sincos_positions
from flowtok_jax.models.text import AlignHead, TextDecoder, TextProjector
from flowtok_jax.models.tokenizer import Tokenizer
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import abstract_group
from flowtok_jax.weights.safetensors import Shape, check_shapes

# (width, depth) -> heads of the published sizes
_DIT_HEADS = {(size["width"], size["depth"]): size["heads"] for size in SIZES.values()}


def convert(
    group: str, state: Mapping[str, Any], heads: Mapping[str, int] | None = None
) -> dict[str, Params]:
    """Converts a released state dict to float32 parameters by network.

    Arrays that need neither stacking nor joining are views of the caller's.

    Args:
        heads: network ("dit", "projector", "clip") -> number of heads, for networks of
            unpublished sizes.

    Raises:
        UserError: naming arrays that are not used, missing, of a wrong shape, or fixed
            tables with other values than ours.
    """
    log_dropped(group, find_ignored(group, state))
    sizes = read_sizes(group, {name: np.shape(x) for name, x in state.items()}, heads)
    state = rules.DEFAULTS[group] | dict(state)
    _check_tables(group, state, sizes)
    return to_ours(rules.RULES[group], _targets(group, sizes), state)


def to_release(
    group: str, params: dict[str, Params], sizes: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Converts parameters to a released state dict; the inverse of `convert`.

    Args:
        params: the group's parameters, by network.
        sizes: config sections of the networks, as `read_sizes` returns them.
    """
    leaves = flatten_dict(params, sep="/")
    targets = _targets(group, sizes)
    got = {path: np.shape(leaf) for path, leaf in leaves.items()}
    what = f"these parameters do not fit the release's {group!r}"
    check_shapes(what, got, targets, note=f"sizes: {sizes}")
    return _tables(group, sizes) | to_source(rules.RULES[group], leaves)


def release_shapes(group: str, sizes: Mapping[str, Any]) -> dict[str, Shape]:
    """Returns names and shapes of the released state dict at these sizes."""
    shapes = {name: table.shape for name, table in _tables(group, sizes).items()}
    return shapes | source_shapes(rules.RULES[group], _targets(group, sizes))


def read_sizes(
    group: str, shapes: Mapping[str, Shape], heads: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Reads the config sections that a state dict's shapes tell, as nested dicts.

    Args:
        shapes: shapes of all arrays of the state dict, by name.
        heads: network ("dit", "projector", "clip") -> number of heads, for networks of
            unpublished sizes. The tokenizer's heads follow from its rotary tables.

    Raises:
        UserError: naming arrays that are not used, missing or of a wrong shape.
    """
    ignored = find_ignored(group, shapes)
    shapes = {name: tuple(s) for name, s in shapes.items() if name not in ignored}
    shapes = dict.fromkeys(rules.DEFAULTS[group], ()) | shapes  # all are scalars
    flat = {key: count_blocks(t, shapes) for key, t in rules.DEPTHS[group].items()}
    _check_names(group, shapes, flat)
    for key, (name, axis) in rules.AXES[group].items():
        flat[key] = _axis(group, name, shapes[name], axis)
    sources = rules.DEPTHS[group] | {
        k: name for k, (name, _) in rules.AXES[group].items()
    }
    # Part of each message below: one wrong array may spoil a size, and with it the
    # expected shapes of many others.
    note = "sizes as read: " + ", ".join(
        f"{key} = {size} ({sources[key]})" for key, size in flat.items()
    )
    sizes = unflatten_dict(flat, sep=".")
    _FINISH[group](sizes, heads or {}, note)
    # Sizes come from a few arrays only; now all the others must agree with them.
    check_shapes(_misfit(group), shapes, release_shapes(group, sizes), note=note)
    return sizes


def find_ignored(group: str, names: Iterable[str]) -> dict[str, str]:
    """Returns the names that conversion drops, each with the reason."""
    return find_dropped(rules.IGNORED[group], names)


def _check_names(group: str, names: Iterable[str], depths: Mapping[str, int]) -> None:
    """Refuses missing and unknown names, before sizes are read off the arrays."""
    expected = set(rules.TABLES[group])
    for rule in rules.RULES[group]:
        for source in rule.sources:
            # A name with a block's number is expected once per block, others once.
            counts = (
                depths[key]
                for key, template in rules.DEPTHS[group].items()
                if source.startswith(template)
            )
            expected |= {source.format(i) for i in range(next(counts, 1))}
    got, expected = (dict.fromkeys(x, ()) for x in (names, expected))
    check_shapes(_misfit(group), got, expected)


def _misfit(group: str) -> str:
    return f"this state dict does not fit {group!r}"


def _axis(group: str, name: str, shape: Shape, axis: int) -> int:
    if axis >= len(shape):
        raise UserError(
            f"{_misfit(group)}: wrong shape (1): {name} is {shape}, expected at least "
            f"{axis + 1} axes"
        )
    return shape[axis]


def _divide(whole: int, part: int, what: str, note: str) -> int:
    if part < 1 or whole % part:
        raise UserError(f"{what}: {whole} is not a multiple of {part}; {note}")
    return whole // part


def _find_heads(
    network: str, size: tuple[int, int], known: Mapping, heads: Mapping, note: str
) -> int:
    """Returns the heads as given, else those of the published (width, depth)."""
    found = heads.get(network) or known.get(size)
    if not found:
        raise UserError(
            f"{network} of width {size[0]} and depth {size[1]} is no published size "
            f"{sorted(known)} and no shape tells its heads; give heads={{{network!r}: "
            f"N}} (--heads={network}=N); {note}"
        )
    _divide(size[0], found, f"width of {network} by its heads", note)
    return found


def _finish_t2i(sizes: dict, heads: Mapping[str, int], note: str) -> None:
    dit = sizes["dit"]
    projector = sizes["projector"]
    width = dit["width"]
    mlp = dit.pop("mlp")
    dit["mlp_ratio"] = _divide(mlp, width, "MLP of dit by its width", note)
    size = width, dit["depth"]
    dit["heads"] = _find_heads("dit", size, _DIT_HEADS, heads, note)
    size = sizes["clip"]["width"], projector["depth"]
    known = rules.PROJECTOR_HEADS
    projector["heads"] = _find_heads("projector", size, known, heads, note)


def _finish_tokenizer(sizes: dict, heads: Mapping[str, int], note: str) -> None:
    tokenizer = sizes["tokenizer"]
    for side in ("encoder", "decoder"):
        # The rotary table is [g*g head_dim], so its shape tells the heads too.
        head_dim = tokenizer[side].pop("head_dim")
        width = tokenizer[side]["width"]
        what = f"width of {side} by the width of its rotary table"
        tokenizer[side]["heads"] = _divide(width, head_dim, what, note)
    grid = math.isqrt(tokenizer.pop("places"))
    tokenizer["image_size"] = grid * tokenizer["patch"]


def _finish_clip(sizes: dict, heads: Mapping[str, int], note: str) -> None:
    clip = sizes["clip"]
    size = clip["width"], clip["depth"]
    # Any multiple of 64 passes as published, as all published towers are.
    is_published = size[0] % rules.CLIP_HEAD_DIM == 0
    known = {size: size[0] // rules.CLIP_HEAD_DIM} if is_published else {}
    clip["heads"] = _find_heads("clip", size, known, heads, note)


# group -> function that completes sizes read off shapes: heads, ratios, image size
_FINISH = {"t2i": _finish_t2i, "tokenizer": _finish_tokenizer, "clip": _finish_clip}


def networks(sizes: Mapping[str, Any]) -> Nets:
    """Makes the networks of these sizes, with default sizes where none are given."""
    parts = defaultdict(dict, sizes)
    latent = dict(parts["latent"])
    tokenizer = {"encoder": {}, "decoder": {}} | dict(parts["tokenizer"])
    channels = {key: x for key, x in latent.items() if key == "channels"}
    # The DiT has no default sizes; S stands in where the group is another one.
    dit = SIZES["s"] | dict(parts["dit"])
    return Nets(
        clip=ClipText(**parts["clip"], context=latent["tokens"]),
        tokenizer=Tokenizer(**tokenizer, **latent),
        projector=TextProjector(**parts["projector"], **channels),
        align_head=AlignHead(**parts["align_head"], **channels),
        dit=DiT(**dit, **latent),
        text_decoder=TextDecoder(),
        student=AverageDiT(**dit, **latent),
        shared_dit=SharedDiT(**dit, **latent),
    )


def _targets(group: str, sizes: Mapping[str, Any]) -> dict[str, Shape]:
    """Returns path -> shape of every leaf of the group, each of which has a rule."""
    leaves = flatten_dict(abstract_group(networks(sizes), group), sep="/")
    targets = {path: leaf.shape for path, leaf in leaves.items()}
    check_rules(group, rules.RULES[group], targets)
    return targets


def _tables(group: str, sizes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Computes the fixed tables that the release stores."""
    if group == "t2i":
        shape = sizes["latent"]["tokens"], sizes["dit"]["width"]
        return {"pos_embed": sincos_positions(*shape)[None]}  # [1 n d]
    tables = {}
    if group == "tokenizer":
        tokenizer = sizes["tokenizer"]
        grid = tokenizer["image_size"] // tokenizer["patch"]
        for side in ("encoder", "decoder"):
            head_dim = tokenizer[side]["width"] // tokenizer[side]["heads"]
            names = (n for n in rules.TABLES[group] if n.startswith(side))  # cos, sin
            tables |= zip(names, rope_tables(grid, head_dim), strict=True)
    return tables


def _check_tables(
    group: str, state: Mapping[str, Any], sizes: Mapping[str, Any]
) -> None:
    """Refuses a state dict whose fixed tables are not those of our model."""
    for name, ours in _tables(group, sizes).items():
        table = np.asarray(state[name])
        # A file in half precision rounds its tables too.
        tolerance = max(rules.TABLE_TOLERANCE, float(jnp.finfo(table.dtype).eps))
        error = np.abs(table.astype(np.float32) - ours).max()
        if not error <= tolerance:  # true for nan, too
            raise UserError(
                f"{name} of this state dict differs from our table by {error:.2g}, "
                f"expected at most {tolerance:.2g}: it is another model's"
            )
