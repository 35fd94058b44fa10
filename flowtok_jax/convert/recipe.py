"""Check of the image tokenizer's whole recipe: some steps of both its networks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from flowtok_jax.convert import rules
from flowtok_jax.convert.critic_checks import make_critic
from flowtok_jax.convert.goldens import Check, Goldens
from flowtok_jax.convert.groups import convert, networks, to_release
from flowtok_jax.convert.layout import to_source
from flowtok_jax.models.convnext import ConvNeXt
from flowtok_jax.models.critics import LPIPS, Discriminator
from flowtok_jax.tasks.adversarial import (
    AdversarialState,
    GanOptions,
    make_adversarial_trainer,
)
from flowtok_jax.tasks.tokenizer import (
    TASK,
    JudgeOptions,
    make_judges,
    reconstruction_terms,
)

TERMS = 1e-3  # relative error of a step's value by itself
FIRST_TERMS = 1e-5  # of the first steps, before rounding adds up
FIRST = 4
# The file's own float32 sums over 128 x 128 places are off by 1.5e-5: in float64 the
# first step's norm is ours to 5e-8.
FIRST_SUMS = {"discriminator_grad_norm": 3e-5}
ARRAYS = 1e-3  # relative L2 error of what was trained
RATES = 1e-6
# A step's values in the golden file, by our names.
SCALARS = {
    "loss/total": "total",
    "loss/reconstruction": "reconstruction",
    "loss/kl": "kl",
    "loss/lpips": "lpips",
    "loss/gan": "gan",
    "loss/discriminator": "discriminator",
    "loss/lecam": "lecam",
    "logits/real": "logits_real",
    "logits/fake": "logits_fake",
    "grad_norm": "grad_norm",
    "discriminator_grad_norm": "discriminator_grad_norm",
    "lr": "lr",
    "lr_discriminator": "discriminator_lr",
}
LPIPS_WEIGHT = 1.0
CONVNEXT_WEIGHT = 0.1


def _config(told: dict[str, Any]) -> ConfigDict:
    """Returns the sections that the trainer reads, with the folder's values."""
    return ConfigDict(
        {
            "train": {
                "num_steps": told["steps"],
                "seed": 0,
                "accumulate": 1,
                "ema_decay": 0.999,
                "ema_warms_up": True,
            },
            "schedule": {
                "lr": told["lr"],
                "lr_end": told["lr_end"],
                "warmup_steps": told["warmup_steps"],
                "schedule": "cosine",
            },
            "optimizer": {
                "betas": tuple(told["betas"]),
                "eps": 1e-8,
                "weight_decay": told["weight_decay"],
                "clip_norm": told["clip_norm"],
                "decayed": "kernels",
            },
            "loss": {
                "tokenizer": {
                    "kl": "gaussian_sample_mean",
                    "kl_weight": told["kl_weight"],
                    "judges": {
                        "lpips_weight": LPIPS_WEIGHT,
                        "convnext_weight": CONVNEXT_WEIGHT,
                        "dtype": "float32",
                        "parts": 1,
                        "remat": False,
                    },
                    "gan": {
                        "weight": told["gan_weight"],
                        "start": told["discriminator_start"],
                        "lr": told["lr"],
                        "lecam_weight": told["lecam_weight"],
                        "lecam_decay": told["lecam_decay"],
                        "width": 128,
                        "stages": 3,
                        "grid": 16,
                        "parts": 1,
                    },
                }
            },
        }
    )


def _given(goldens: Goldens, told: dict[str, Any], step: int) -> dict[str, jax.Array]:
    """Draws what a step is given."""
    rows = told["training"]["batch"]
    side = told["image_size"]
    tokens = told["tokens"]
    image = goldens.uniform(f"titok_train/image/{step}", rows, 3, side, side)
    text = (rows, tokens, told["text_feature_dim"])
    eps = goldens.draw(f"titok_train/eps/{step}", rows, told["channels"], 1, tokens)
    given = {
        "image": image.transpose(0, 2, 3, 1),
        "text_feats": goldens.draw(f"titok_train/text/{step}", *text),
        "noise": eps[:, :, 0].transpose(0, 2, 1),  # [b c 1 n] -> [b n c]
    }
    return jax.tree.map(jnp.asarray, given)


def check_titok_train(check: Check) -> None:
    """Checks every loss term, gradient norm and rate, and what was trained."""
    goldens = check.goldens
    told = goldens.value(check.name)
    config = _config(told["training"])
    sizes = goldens.sizes(check.name)
    nets = networks(sizes)
    side = jnp.zeros((1, told["image_size"], told["image_size"], 3))
    options = config.loss.tokenizer

    def loss(trained, frozen, given, key, is_judged):
        judges = make_judges(
            JudgeOptions(**options.judges), GanOptions(**options.gan), is_judged
        )
        terms = {name: options[name] for name in ("kl", "kl_weight")}
        value, (scalars, made) = reconstruction_terms(
            trained, frozen, given, nets=nets, judges=judges, **terms
        )
        return value, (scalars, (given["image"], made))

    trainer = make_adversarial_trainer(TASK, config, nets, loss)
    state = trainer.start(convert("tokenizer", goldens.state(check.name)))
    discriminator = Discriminator()
    state = state.replace(
        discriminator=make_critic(goldens, "discriminator", discriminator, side)
    )
    frozen = {
        "lpips": make_critic(goldens, "lpips", LPIPS(), side, side),
        "convnext": make_critic(goldens, "convnext", ConvNeXt(), side),
    }
    step = jax.jit(trainer.step)
    logs = []
    for i in range(told["training"]["steps"]):
        given = _given(goldens, told, i)
        before = state
        state, scalars = step(state, frozen, given)
        logs.append(jax.device_get(scalars) | trainer.rates(i))
    _compare_logs(check, logs)
    nothing = frozen | {"gan": before.discriminator}
    _, (_, pair) = jax.jit(loss)(before.params, nothing, given, before.key, False)
    seen = pair[1][:, ::4, ::4].transpose(0, 3, 1, 2)
    check.compare("last_reconstruction", seen, ARRAYS)
    _compare_trained(check, state, sizes)


def _compare_trained(
    check: Check, state: AdversarialState, sizes: dict[str, Any]
) -> None:
    """Compares what was trained, as far as the file stores it."""
    for kind in ("lecam_real", "lecam_fake"):
        check.compare(kind, getattr(state, kind)[None], ARRAYS)
    trained = to_release("tokenizer", jax.device_get(state.params), sizes)
    leaves = flatten_dict(jax.device_get(state.discriminator), sep="/")
    judged = to_source(rules.CRITICS["discriminator"], leaves)
    for prefix, arrays in (("tokenizer", trained), ("discriminator", judged)):
        for name in arrays:
            if f"{prefix}/{name}" in check:
                check.compare(f"{prefix}/{name}", arrays[name], ARRAYS)


def _compare_logs(check: Check, logs: list[dict[str, Any]]) -> None:
    """Compares every value of every step; those that are 0 in the file must be 0."""
    steps = {
        name: np.array([log[ours] for log in logs]) for ours, name in SCALARS.items()
    }
    convnext = np.array([log["loss/convnext"] for log in logs])
    steps["perceptual"] = steps["lpips"] + convnext
    steps["lpips"] = steps["lpips"] / LPIPS_WEIGHT
    steps["convnext"] = convnext / CONVNEXT_WEIGHT
    for name, values in steps.items():
        is_rate = name.endswith("lr")
        first = RATES if is_rate else FIRST_SUMS.get(name, FIRST_TERMS)
        rest = RATES if is_rate else TERMS
        check.compare(name, values[:FIRST], first, each=True, rows=slice(FIRST))
        check.compare(name, values[FIRST:], rest, each=True, rows=slice(FIRST, None))
