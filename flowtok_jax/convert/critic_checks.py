"""Checks of the networks that judge images, and of the losses on what they say."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.convert.critics import convert_critic, prepare_critic
from flowtok_jax.convert.goldens import Check, Goldens
from flowtok_jax.models.convnext import ConvNeXt, resize_bilinear
from flowtok_jax.models.critics import LPIPS, Discriminator
from flowtok_jax.models.inception import SIDE, Inception, resize_legacy
from flowtok_jax.tasks import losses

CRITIC = 1e-4  # relative L2 error allowed


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
    run = _program(check.goldens, check.name, Discriminator(), images[0])
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
    distance = _program(check.goldens, check.name, LPIPS(), *images)(*images)
    check.compare("distance", distance[:, None, None, None], CRITIC)  # [b 1 1 1]


def check_convnext(check: Check) -> None:
    """Checks logits, and the resizing of smaller and of larger images."""
    images = {
        "logits": _images(check.goldens, "convnext_image", 224, 224),
        "logits_from_96px": _images(check.goldens, "convnext_small_image", 96, 96),
        "logits_from_256px": _images(
            check.goldens, "convnext_big_image", 256, 256, rows=1
        ),
    }
    run = _program(check.goldens, check.name, ConvNeXt(), images["logits"])
    for key, inputs in images.items():
        check.compare(key, run(inputs), CRITIC)
    for side in (96, 256):
        inputs = images[f"logits_from_{side}px"]
        resized = jax.jit(resize_bilinear, static_argnums=1)(inputs, 224)
        # Of the golden image every 7th pixel is stored: [b 3 32 32].
        seen = resized[:, ::7, ::7].transpose(0, 3, 1, 2)
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
