"""Networks that metrics judge with, and their weights: a directory of

metrics.json       sizes, the files they were converted from, and digests
NAME.safetensors   float32 parameters by their path, of each of NAMES that it has
vocabulary.json    captions to CLIP's ids, where it has clip

which `python -m flowtok_jax.convert` writes; or "random".
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.models.clip import make_clip_scorer
from flowtok_jax.models.convnext import ConvNeXt
from flowtok_jax.models.critics import LPIPS
from flowtok_jax.models.inception import SIDE, Inception
from flowtok_jax.runtime.errors import StoreError, UserError, reason_of
from flowtok_jax.runtime.files import file_sha256, local_file, read_json, to_place
from flowtok_jax.weights.safetensors import Shape, read_copies, shapes_of

METRICS = "metrics.json"
NAMES = ("inception", "lpips", "clip", "convnext")
RANDOM = "random"
# The flag of the converter that makes each.
FLAGS = {
    "inception": "--inception=pt_inception-2015-12-05-6726825d.pth",
    "lpips": "--lpips=vgg16-397923af.pth,vgg.pth",
    "clip": "--clip_score=openai/clip-vit-large-patch14-336",
    "convnext": "--convnext=convnext_small-0c510722.pth",
}
# A small CLIP that knows the ids of any vocabulary up to CLIP's own.
RANDOM_CLIP = {
    "text": {"width": 64, "depth": 2, "heads": 1},
    "vision": {"width": 64, "depth": 2, "heads": 1, "image_size": 64, "patch": 8},
    "features": 64,
}


class MetricNet(NamedTuple):
    """A network of a metric, with its parameters."""

    module: nn.Module
    params: Params
    sha256: str  # of the weights file, "random" of random ones


def make_module(name: str, sizes: Mapping[str, Any]) -> nn.Module:
    """Makes the module of a name of NAMES; only clip has sizes."""
    if name == "clip":
        return make_clip_scorer(**sizes)
    modules = {"inception": Inception, "lpips": LPIPS, "convnext": ConvNeXt}
    return modules[name](**sizes)


def net_shapes(name: str, module: nn.Module) -> dict[str, Shape]:
    """Returns path -> shape of the module's parameters; computes nothing."""
    if name == "clip":
        side = module.image_size
        ids = jnp.zeros((1, module.text.context), jnp.int32)
        inputs = jnp.zeros((1, side, side, 3)), ids
    else:
        images = jnp.zeros((1, SIDE, SIDE, 3))
        inputs = (images, images) if name == "lpips" else (images,)
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return shapes_of(params)


def abstract_net(name: str) -> Params:
    """Returns shapes and dtypes of the parameters of a network of one size."""
    shapes = net_shapes(name, make_module(name, {}))
    leaves = {k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()}
    return unflatten_dict(leaves, sep="/")


def check_metric_net(name: str, place: str) -> None:
    """Refuses a place without the weights of a network, which are not read.

    Raises:
        UserError: saying how to make them.
    """
    if not place:
        raise UserError(
            f"eval.weights is empty; expected a directory with {name}, made by `python "
            f"-m flowtok_jax.convert {FLAGS[name]} --out=DIR`, or 'random'"
        )
    if place != RANDOM:
        _read_entry(name, place)


def load_metric_net(name: str, place: str) -> MetricNet:
    """Loads a network of NAMES with its weights into this machine's memory.

    Args:
        place: a directory that the converter wrote, or "random": the architecture
            (of clip a small one) with weights that are drawn, the same everywhere.

    Raises:
        UserError: if the weights are absent, damaged or not what metrics.json says.
    """
    if name not in NAMES:
        raise UserError(f"no metric has a network {name!r}; expected one of {NAMES}")
    # Architecture and weights need no file: tests and dry runs work offline.
    if place == RANDOM:
        module = make_module(name, RANDOM_CLIP if name == "clip" else {})
        shapes = net_shapes(name, module)
        leaves = {path: _draw(path, shape) for path, shape in shapes.items()}
        return MetricNet(module, unflatten_dict(leaves, sep="/"), RANDOM)
    directory = to_place(place)
    entry = _read_entry(name, place)
    try:
        module = make_module(name, entry["sizes"])
        shapes = net_shapes(name, module)
        digest = entry["sha256"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{directory / METRICS} is not that of this version's networks: {error}"
        ) from error
    path = directory / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(f"{path} does not exist; {_cure(name)}")
    with local_file(path) as file:
        # The digest is part of every protocol, so it has to be that of these bytes.
        found = file_sha256(file)
        if found != digest:
            raise UserError(
                f"{path} has sha256 {found}, {METRICS} says {digest}; {_cure(name)}"
            )
        leaves = read_copies(file, shapes, f"{path} does not fit {METRICS}")
    return MetricNet(module, unflatten_dict(leaves, sep="/"), found)


def _read_entry(name: str, place: str) -> Any:
    """Reads what a directory of metric weights says of a network."""
    entry = read_metrics(place).get(name)
    if entry is None:
        raise UserError(f"{place} has no weights of {name}; {_cure(name)}")
    return entry


def read_metrics(place: str) -> dict[str, Any]:
    """Reads the entries of a directory of metric weights, by name.

    Raises:
        UserError: if it is no such directory.
    """
    path = to_place(place) / METRICS
    try:
        entries = read_json(path)
    except StoreError:  # a ValueError too, and no fault of the file
        raise
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; expected a directory of metric weights, made by "
            "`python -m flowtok_jax.convert --inception=FILE --lpips=FILES "
            "--convnext=FILE --clip_score=DIR --out=DIR`, or 'random'"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)})") from error
    if not isinstance(entries, dict):
        raise UserError(f"{path} holds a {type(entries).__name__}; expected an object")
    return entries


def _cure(name: str) -> str:
    return f"run `python -m flowtok_jax.convert {FLAGS[name]} --out=DIR`"


def _draw(path: str, shape: Shape) -> np.ndarray:
    """Draws a leaf by numpy, which compiles nothing and draws the same everywhere.

    Kernels keep the size of what passes through ReLUs (He et al. 2015), so that an
    untrained network still tells images apart; norms and weights start at 1.
    """
    leaf = path.split("/")[-1]
    if leaf in ("bias", "mean"):
        return np.zeros(shape, np.float32)
    is_drawn = leaf in ("kernel", "embedding", "positions", "class_token")
    if not is_drawn:
        return np.ones(shape, np.float32)
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(path.encode())))
    values = rng.standard_normal(shape, np.float32)
    if leaf != "kernel":
        return values
    # A convolution's [h w in out], else [in out]; blocks may be stacked in front.
    fan_in = math.prod(shape[-4:-1]) if len(shape) > 3 else shape[-2]
    return values * np.float32(math.sqrt(2 / fan_in))
