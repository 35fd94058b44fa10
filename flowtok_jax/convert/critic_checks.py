"""Checks of the networks that judge images, and of the losses on what they say."""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.convert.critics import convert_critic, prepare_critic
from flowtok_jax.convert.goldens import Check, Goldens
from flowtok_jax.convert.layout import count_blocks
from flowtok_jax.convert.rules import VGG_PLACES
from flowtok_jax.models import convnext
from flowtok_jax.models.critics import LPIPS, Discriminator
from flowtok_jax.models.inception import SIDE, Inception, resize_legacy
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import losses
from flowtok_jax.weights.safetensors import Shape

CRITIC = 1e-4  # relative L2 error allowed
SMALL = 96  # pixels of images that ConvNeXt enlarges, unless the file has others
LARGE = 256  # and of those that it shrinks


def _sized_convnext(shapes: Mapping[str, Shape]) -> convnext.ConvNeXt:
    blocks = [f"features.{place}.{{}}.block.0.weight" for place in (1, 3, 5, 7)]
    return convnext.ConvNeXt(
        depths=tuple(count_blocks(template, shapes) for template in blocks),
        widths=tuple(shapes[template.format(0)][0] for template in blocks),
        classes=shapes["classifier.2.weight"][0],
    )


def _sized_discriminator(shapes: Mapping[str, Shape]) -> Discriminator:
    return Discriminator(shapes["block_in.0.weight"][0])


def _sized_lpips(shapes: Mapping[str, Shape]) -> LPIPS:
    layers = (
        tuple(shapes[f"net.slice{layer}.{place}.weight"][0] for place in places)
        for layer, places in enumerate(VGG_PLACES, start=1)
    )
    return LPIPS(tuple(layers))


SIZED = {
    "convnext": _sized_convnext,
    "discriminator": _sized_discriminator,
    "lpips": _sized_lpips,
}


def sized_critic(goldens: Goldens, name: str) -> Any:
    """Makes a network of SIZED with the sizes that its manifest tells.

    Raises:
        UserError: if the manifest lacks a name.
    """
    shapes = {key: drawn.shape for key, drawn in goldens.state(name).items()}
    try:
        return SIZED[name](shapes)
    except KeyError as error:
        path = goldens.folder / f"{name}.manifest.json"
        raise UserError(f"{path} has no {error}") from error


def make_critic(
    goldens: Goldens, name: str, net: nn.Module, *inputs: jax.Array
) -> Params:
    """Makes a critic's parameters by the golden rule."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    leaves = flatten_dict(shapes, sep="/")
    targets = {path: leaf.shape for path, leaf in leaves.items()}
    state = prepare_critic(name, goldens.state(name))
    return jax.device_put(convert_critic(name, state, targets))


def _program(goldens: Goldens, name: str, net: nn.Module, *inputs: jax.Array) -> Any:
    """Compiles a critic with the rule's weights into a function of its inputs."""
    params = make_critic(goldens, name, net, *inputs)
    program = jax.jit(lambda p, *x: net.apply({"params": p}, *x))
    return lambda *x: program(params, *x)


def _images(
    goldens: Goldens, name: str, height: int, width: int, rows: int = 2
) -> jax.Array:
    images = goldens.uniform(name, rows, 3, height, width)
    return jnp.asarray(images.transpose(0, 2, 3, 1))  # [b h w 3]


def check_discriminator(check: Check) -> None:
    """Checks logits of real and fake images, and the losses on them."""
    images = [_images(check.goldens, k, 256, 256) for k in ("real", "fake")]
    net = sized_critic(check.goldens, check.name)
    run = _program(check.goldens, check.name, net, images[0])
    real, fake = map(run, images)
    check.compare("logits_real", real[:, None], CRITIC)  # [b 1 g g]
    check.compare("logits_fake", fake[:, None], CRITIC)
    check.compare("hinge", losses.hinge_loss(real, fake), CRITIC)
    averages = check.input("ema_real"), check.input("ema_fake")
    check.compare("lecam", losses.lecam_loss(real, fake, *averages), CRITIC)
    check.compare("generator", losses.generator_loss(fake), CRITIC)


def check_lpips(check: Check) -> None:
    """Checks distances between the images of `check_discriminator`."""
    images = [_images(check.goldens, k, 256, 256) for k in ("real", "fake")]
    net = sized_critic(check.goldens, check.name)
    distance = _program(check.goldens, check.name, net, *images)(*images)
    check.compare("distance", distance[:, None, None, None], CRITIC)  # [b 1 1 1]


def _resized_sides(check: Check) -> list[int]:
    """Lists the sides of the images that are resized for ConvNeXt."""
    names = (
        re.fullmatch(r"(?:logits_from|resized)_(\d+)(?:px)?", key)
        for key in check.arrays
    )
    sides = {int(name[1]) for name in names if name}
    # Every such file has smaller and larger images, or lacks them.
    if not any(side < convnext.SIDE for side in sides):
        sides.add(SMALL)
    if not any(side > convnext.SIDE for side in sides):
        sides.add(LARGE)
    return sorted(sides)


def check_convnext(check: Check) -> None:
    """Checks logits, and the resizing of smaller and of larger images."""
    image = _images(check.goldens, "convnext_image", convnext.SIDE, convnext.SIDE)
    net = sized_critic(check.goldens, check.name)
    run = _program(check.goldens, check.name, net, image)
    check.compare("logits", run(image), CRITIC)
    for side in _resized_sides(check):
        name = "convnext_small_image" if side < convnext.SIDE else "convnext_big_image"
        rows = 2 if side < convnext.SIDE else 1
        image = _images(check.goldens, name, side, side, rows)
        check.compare(f"logits_from_{side}px", run(image), CRITIC)
        resize = jax.jit(convnext.resize_bilinear, static_argnums=1)
        # Of the golden image every 7th pixel is stored: [b 3 32 32].
        seen = resize(image, convnext.SIDE)[:, ::7, ::7].transpose(0, 3, 1, 2)
        check.compare(f"resized_{side}", seen, CRITIC)


def check_inception(check: Check) -> None:
    """Checks features and logits, of resized images and of images of 299 px."""
    images = _images(check.goldens, "fid_image", 192, 256)
    whole = jnp.round(255 * _images(check.goldens, "fid_image299", SIDE, SIDE))
    run = _program(check.goldens, check.name, Inception(), whole)
    resized = jax.jit(resize_legacy)(jnp.round(255 * images))
    for ending, inputs in (("", resized), ("_299", whole)):
        features, logits = run(inputs)
        check.compare(f"pool_2048{ending}", features, CRITIC)
        check.compare(f"logits_unbiased{ending}", logits, CRITIC)
