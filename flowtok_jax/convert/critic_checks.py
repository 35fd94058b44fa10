"""What the golden files of the critics and of FID are compared with."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from flowtok_jax.convert.checks import Check
from flowtok_jax.convert.critics import convert_critic, prepare
from flowtok_jax.convert.goldens import Goldens
from flowtok_jax.eval.fid import frechet_distance
from flowtok_jax.models.critics import LPIPS, Discriminator
from flowtok_jax.models.inception import SIDE, Inception, resize_legacy
from flowtok_jax.tasks import losses

FEATURES, DISTANCE = 1e-4, 1e-6  # relative errors


def _program(goldens: Goldens, name: str, net: nn.Module, *inputs: jax.Array) -> Any:
    """What a network with the rule's weights gives, as a function of its inputs."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    leaves = flatten_dict(shapes, sep="/")
    targets = {path: leaf.shape for path, leaf in leaves.items()}
    state = prepare(name, goldens.state(name))
    params = jax.device_put(convert_critic(name, state, targets))
    program = jax.jit(lambda p, *x: net.apply({"params": p}, *x))
    return lambda *x: program(params, *x)


def _images(goldens: Goldens, name: str, height: int, width: int) -> jax.Array:
    images = goldens.uniform(name, 2, 3, height, width)
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def check_discriminator(check: Check) -> None:
    """Logits of both kinds of images, and the losses on them."""
    real, fake = (_images(check.goldens, k, 256, 256) for k in ("real", "fake"))
    run = _program(check.goldens, check.name, Discriminator(), real)
    real, fake = run(real), run(fake)
    check.compare("logits_real", real[:, None], FEATURES)
    check.compare("logits_fake", fake[:, None], FEATURES)
    check.compare("hinge", losses.hinge_loss(real, fake), FEATURES)
    averages = check.input("ema_real"), check.input("ema_fake")
    check.compare("lecam", losses.lecam_loss(real, fake, *averages), FEATURES)
    check.compare("generator", losses.generator_loss(fake), FEATURES)


def check_lpips(check: Check) -> None:
    """Distances of the discriminator's images."""
    images = [_images(check.goldens, k, 256, 256) for k in ("real", "fake")]
    distance = _program(check.goldens, check.name, LPIPS(), *images)(*images)
    check.compare("distance", distance[:, None, None, None], FEATURES)


def check_inception(check: Check) -> None:
    """Features and logits of images that are resized, and of ones that are not."""
    images = _images(check.goldens, "fid_image", 192, 256)
    whole = jnp.round(255 * _images(check.goldens, "fid_image299", SIDE, SIDE))
    run = _program(check.goldens, check.name, Inception(), whole)
    resized = jax.jit(resize_legacy)(jnp.round(255 * images))
    for ending, inputs in (("", resized), ("_299", whole)):
        features, logits = run(inputs)
        check.compare(f"pool_2048{ending}", features, FEATURES)
        check.compare(f"logits_unbiased{ending}", logits, FEATURES)


def check_fid(check: Check) -> None:
    """Distance of two sets of draws."""
    a = check.goldens.draw("fid/a", 500, 64)
    b = check.goldens.draw("fid/b", 400, 64) * 1.3 + 0.2  # in float32, as there
    sets = (x.astype(np.float64) for x in (a, b))
    moments = [m for x in sets for m in (x.mean(0), np.cov(x, rowvar=False))]
    check.compare("fid", frechet_distance(*moments), DISTANCE)


CHECKS = {
    "discriminator": check_discriminator,
    "lpips": check_lpips,
    "inception": check_inception,
    "fid": check_fid,
}
