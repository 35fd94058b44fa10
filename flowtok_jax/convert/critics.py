"""State dicts of the networks that judge images to our parameters.

"inception", "lpips" and "discriminator" have one size each; "clip" is CLIP with both
towers by its Hugging Face names. Every name must be used, or dropped for a stated
reason.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.convert import rules
from flowtok_jax.convert.layout import (
    check_rules,
    find_dropped,
    log_dropped,
    source_shapes,
    to_ours,
)
from flowtok_jax.models import critics
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.safetensors import Shape, check_shapes

# Fixed arrays that files hold and we compute: compared where they are, then dropped.
_IMAGENET = {"shift": critics.SHIFT, "scale": critics.SCALE}
TABLES: dict[str, dict[str, np.ndarray]] = {
    "lpips": {
        f"scaling_layer.{name}": np.array(values, np.float32)[None, :, None, None]
        for name, values in _IMAGENET.items()
    },
    "discriminator": {
        f"blocks.{i}.1.kernel": critics.BLUR[None, None] for i in (0, 1, 2)
    },
}

# Config key -> (source name, axis) that holds it, of CLIP.
_EMBEDDINGS = "{}_model.embeddings.{}_embedding.weight"
CLIP_AXES = {
    "text.width": (_EMBEDDINGS.format("text", "token"), 1),
    "text.vocab_size": (_EMBEDDINGS.format("text", "token"), 0),
    "text.context": (_EMBEDDINGS.format("text", "position"), 0),
    "vision.width": (_EMBEDDINGS.format("vision", "patch"), 0),
    "vision.patch": (_EMBEDDINGS.format("vision", "patch"), 2),
    "vision.places": (_EMBEDDINGS.format("vision", "position"), 0),
    "features": ("text_projection.weight", 0),
}


def convert_critic(
    name: str, state: Mapping[str, Any], targets: Mapping[str, Shape]
) -> Params:
    """Our float32 parameters of a critic.

    Args:
        state: as of `prepare`.
        targets: shapes of our parameters, by path.

    Raises:
        UserError: naming what is unused, unset, of a wrong shape, or a fixed array that
            is not ours.
    """
    table = rules.CRITICS[name]
    check_rules(name, table, targets)
    got = {key: np.shape(array) for key, array in state.items()}
    check_shapes(f"this state dict is no {name}", got, source_shapes(table, targets))
    return to_ours(table, targets, state)


def prepare(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without what conversion drops, under the names of the rules.

    VGG16's layers may have torchvision's names. What is dropped is logged.

    Raises:
        UserError: where a fixed array is not ours.
    """
    dropped = find_dropped(rules.CRITICS_IGNORED[name], state)
    log_dropped(name, dropped)
    kept, tables = {}, TABLES.get(name, {})
    for key, array in state.items():
        if key in tables:
            _check_table(key, array, tables[key])
        elif key not in dropped:
            kept[_rename(name, key)] = array
    return kept


def _rename(name: str, key: str) -> str:
    """torchvision's `features.N.*` as LPIPS has it, `net.sliceL.N.*`."""
    match = re.fullmatch(r"features\.(\d+)\.(\w+)", key) if name == "lpips" else None
    for layer, places in enumerate(rules.VGG):
        if match and int(match[1]) in places:
            return f"net.slice{layer + 1}.{match[1]}.{match[2]}"
    return key


def _check_table(key: str, array: Any, ours: np.ndarray) -> None:
    array = np.asarray(array, np.float32)
    if array.shape != ours.shape or not np.allclose(array, ours, rtol=0, atol=1e-5):
        raise UserError(
            f"{key} of this state dict is {array.ravel()[:4].tolist()}, ours is "
            f"{ours.ravel()[:4].tolist()}: it is another model's"
        )


def read_clip_sizes(
    shapes: Mapping[str, Shape], heads: Mapping[str, int]
) -> dict[str, Any]:
    """Sizes of CLIP as `make_clip_scorer` takes them, by the shapes of its state dict.

    Args:
        heads: "text" and "vision", where its config.json says; 64 channels a head,
            as in all published ones, where it does not.

    Raises:
        UserError: where a name that tells a size is missing, or sizes do not go
            together.
    """
    flat: dict[str, int] = {}
    for key, (source, axis) in CLIP_AXES.items():
        if len(shapes.get(source, ())) <= axis:
            raise UserError(
                f"no CLIP with both towers: {source} is {shapes.get(source, 'missing')}"
            )
        flat[key] = shapes[source][axis]
    grid = math.isqrt(max(flat.pop("vision.places") - 1, 1))
    flat["vision.image_size"] = grid * flat["vision.patch"]
    for tower in ("text", "vision"):
        name = rf"{tower}_model\.encoder\.layers\.(\d+)\..*"
        found = (re.fullmatch(name, key) for key in shapes)
        flat[f"{tower}.depth"] = 1 + max((int(m[1]) for m in found if m), default=0)
        width = flat[f"{tower}.width"]
        number = heads.get(tower) or width // rules.CLIP_HEAD_DIM
        if not number or width % number:
            raise UserError(
                f"the {tower} tower is {width} wide and has {number} heads; wanted "
                "heads that divide it, in its config.json"
            )
        flat[f"{tower}.heads"] = number
    return unflatten_dict(flat, sep=".")
