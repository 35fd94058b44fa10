"""Released state dicts to our parameters and back, by the tables in `rules.py`.

A state dict maps a name to an array in PyTorch's layout. Groups are those of
`models/build.py` that have a release: "t2i" (FlowTok: projector, align head and DiT),
"tokenizer" (FlowTiTok) and "clip" (the text tower, Hugging Face names). Every name must
be used or dropped for a stated reason, every leaf of ours set, every shape right.
"""

import math
import re
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
    find_dropped,
    log_dropped,
    source_shapes,
    to_ours,
    to_source,
)
from flowtok_jax.models.build import Nets
from flowtok_jax.models.clip import ClipText
from flowtok_jax.models.dit import SIZES, DiT
from flowtok_jax.models.layers import rope_tables, sincos_positions
from flowtok_jax.models.text import AlignHead, TextDecoder, TextProjector
from flowtok_jax.models.tokenizer import Tokenizer
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import abstract_group
from flowtok_jax.weights.safetensors import Shape, check_shapes

_DIT_HEADS = {(size["width"], size["depth"]): size["heads"] for size in SIZES.values()}


def convert(
    group: str, state: Mapping[str, Any], heads: Mapping[str, int] | None = None
) -> dict[str, Params]:
    """Our float32 parameters, by network, from a released state dict.

    Arrays that need neither stacking nor joining are views of the caller's.

    Args:
        heads: as of `read_sizes`.

    Raises:
        UserError: naming what is unused, unset, of a wrong shape, or a table that is
            not ours.
    """
    log_dropped(group, find_ignored(group, state))
    sizes = read_sizes(group, {name: np.shape(x) for name, x in state.items()}, heads)
    state = rules.DEFAULTS[group] | dict(state)
    _check_tables(group, state, sizes)
    return to_ours(rules.RULES[group], _targets(group, sizes), state)


def to_release(
    group: str, params: dict[str, Params], sizes: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The inverse of `convert`: names, layouts and fixed tables of the release.

    Args:
        params: the group's parameters, by network.
        sizes: as of `read_sizes`.
    """
    leaves, targets = flatten_dict(params, sep="/"), _targets(group, sizes)
    got = {path: np.shape(leaf) for path, leaf in leaves.items()}
    what = f"these parameters do not fit the release's {group!r}"
    check_shapes(what, got, targets, note=f"sizes: {sizes}")
    return _tables(group, sizes) | to_source(rules.RULES[group], leaves)


def release_shapes(group: str, sizes: Mapping[str, Any]) -> dict[str, Shape]:
    """Names and shapes of the state dict that the release has at these sizes."""
    shapes = {name: table.shape for name, table in _tables(group, sizes).items()}
    return shapes | source_shapes(rules.RULES[group], _targets(group, sizes))


def read_sizes(
    group: str, shapes: Mapping[str, Shape], heads: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The config sections that a state dict's shapes tell, as nested dicts.

    Args:
        shapes: of all the arrays of the state dict, by name.
        heads: network ("dit", "projector", "clip") -> number of heads, for networks of
            unpublished sizes. The tokenizer's are told by its rotary tables.

    Raises:
        UserError: naming what is unused, unset or of a wrong shape.
    """
    ignored = find_ignored(group, shapes)
    shapes = {name: tuple(s) for name, s in shapes.items() if name not in ignored}
    shapes = dict.fromkeys(rules.DEFAULTS[group], ()) | shapes
    flat = {key: _count(t, shapes) for key, t in rules.DEPTHS[group].items()}
    _check_names(group, shapes, flat)
    for key, (name, axis) in rules.AXES[group].items():
        flat[key] = _axis(group, name, shapes[name], axis)
    sources = rules.DEPTHS[group] | {
        k: name for k, (name, _) in rules.AXES[group].items()
    }
    note = "sizes as read: " + ", ".join(
        f"{key} = {size} ({sources[key]})" for key, size in flat.items()
    )
    sizes = unflatten_dict(flat, sep=".")
    _FINISH[group](sizes, heads or {}, note)
    check_shapes(_misfit(group), shapes, release_shapes(group, sizes), note=note)
    return sizes


def find_ignored(group: str, names: Iterable[str]) -> dict[str, str]:
    """The names that conversion drops, each with the reason."""
    return find_dropped(rules.IGNORED[group], names)


def _count(template: str, names: Iterable[str]) -> int:
    """Blocks with names of this template; at least one, so that none are missed."""
    before, after = map(re.escape, template.split("{}"))
    found = (re.match(rf"{before}(\d+){after}", name) for name in names)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def _check_names(group: str, names: Iterable[str], depths: Mapping[str, int]) -> None:
    """Refuses names before any size is read off them."""
    wanted = set(rules.TABLES[group])
    for rule in rules.RULES[group]:
        for source in rule.sources:
            counts = (
                depths[key]
                for key, template in rules.DEPTHS[group].items()
                if source.startswith(template)
            )
            wanted |= {source.format(i) for i in range(next(counts, 1))}
    got, wanted = (dict.fromkeys(x, ()) for x in (names, wanted))
    check_shapes(_misfit(group), got, wanted)


def _misfit(group: str) -> str:
    return f"this state dict does not fit {group!r}"


def _axis(group: str, name: str, shape: Shape, axis: int) -> int:
    if axis >= len(shape):
        raise UserError(
            f"{_misfit(group)}: wrong shape (1): {name} is {shape}, wanted at least "
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
    """Heads as given, else of the published (width, depth)."""
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
    dit, projector = sizes["dit"], sizes["projector"]
    mlp, width = dit.pop("mlp"), dit["width"]
    dit["mlp_ratio"] = _divide(mlp, width, "MLP of dit by its width", note)
    size = width, dit["depth"]
    dit["heads"] = _find_heads("dit", size, _DIT_HEADS, heads, note)
    size = sizes["clip"]["width"], projector["depth"]
    known = rules.PROJECTOR_HEADS
    projector["heads"] = _find_heads("projector", size, known, heads, note)


def _finish_tokenizer(sizes: dict, heads: Mapping[str, int], note: str) -> None:
    tokenizer = sizes["tokenizer"]
    for side in ("encoder", "decoder"):
        head_dim, width = tokenizer[side].pop("head_dim"), tokenizer[side]["width"]
        what = f"width of {side} by the width of its rotary table"
        tokenizer[side]["heads"] = _divide(width, head_dim, what, note)
    grid = math.isqrt(tokenizer.pop("places"))
    tokenizer["image_size"] = grid * tokenizer["patch"]


def _finish_clip(sizes: dict, heads: Mapping[str, int], note: str) -> None:
    clip = sizes["clip"]
    size = clip["width"], clip["depth"]
    is_published = size[0] % rules.CLIP_HEAD_DIM == 0
    known = {size: size[0] // rules.CLIP_HEAD_DIM} if is_published else {}
    clip["heads"] = _find_heads("clip", size, known, heads, note)


_FINISH = {"t2i": _finish_t2i, "tokenizer": _finish_tokenizer, "clip": _finish_clip}


def networks(sizes: Mapping[str, Any]) -> Nets:
    """The networks of these sizes; of those without any, some."""
    parts = defaultdict(dict, sizes)
    latent = dict(parts["latent"])
    tokenizer = {"encoder": {}, "decoder": {}} | dict(parts["tokenizer"])
    channels = {key: x for key, x in latent.items() if key == "channels"}
    return Nets(
        clip=ClipText(**parts["clip"], context=latent["tokens"]),
        tokenizer=Tokenizer(**tokenizer, **latent),
        projector=TextProjector(**parts["projector"], **channels),
        align_head=AlignHead(**parts["align_head"], **channels),
        dit=DiT(**(SIZES["s"] | dict(parts["dit"])), **latent),
        text_decoder=TextDecoder(),
    )


def _targets(group: str, sizes: Mapping[str, Any]) -> dict[str, Shape]:
    """Path -> shape of every leaf of the group, each of which has a rule."""
    leaves = flatten_dict(abstract_group(networks(sizes), group), sep="/")
    targets = {path: leaf.shape for path, leaf in leaves.items()}
    check_rules(group, rules.RULES[group], targets)
    return targets


def _tables(group: str, sizes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The fixed tables that the release stores, computed by us."""
    if group == "t2i":
        shape = sizes["latent"]["tokens"], sizes["dit"]["width"]
        return {"pos_embed": sincos_positions(*shape)[None]}
    tables = {}
    if group == "tokenizer":
        tokenizer = sizes["tokenizer"]
        grid = tokenizer["image_size"] // tokenizer["patch"]
        for side in ("encoder", "decoder"):
            head_dim = tokenizer[side]["width"] // tokenizer[side]["heads"]
            names = (n for n in rules.TABLES[group] if n.startswith(side))
            tables |= zip(names, rope_tables(grid, head_dim), strict=True)
    return tables


def _check_tables(
    group: str, state: Mapping[str, Any], sizes: Mapping[str, Any]
) -> None:
    """Refuses a state dict whose fixed tables are not those of our model."""
    for name, ours in _tables(group, sizes).items():
        table = np.asarray(state[name])
        tolerance = max(rules.TABLE_TOLERANCE, float(jnp.finfo(table.dtype).eps))
        error = np.abs(table.astype(np.float32) - ours).max()
        if not error <= tolerance:
            raise UserError(
                f"{name} of this state dict differs from our table by {error:.2g}, "
                f"wanted at most {tolerance:.2g}: it is another model's"
            )
