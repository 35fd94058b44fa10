"""Check of the image tokenizer's whole recipe: some steps of both its networks."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from flowtok_jax.convert import rules
from flowtok_jax.convert.critic_checks import SIZED, make_critic, sized_critic
from flowtok_jax.convert.goldens import Check, Goldens
from flowtok_jax.convert.groups import convert, networks, to_release
from flowtok_jax.convert.layout import to_source
from flowtok_jax.models.critics import Discriminator
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
# What golden.json tells of sizes and of training.
SIZES = ("image_size", "tokens", "channels", "text_feature_dim")
TRAINING = (
    "steps",
    "batch",
    "lr",
    "lr_end",
    "warmup_steps",
    "betas",
    "weight_decay",
    "clip_norm",
    "kl_weight",
    "gan_weight",
    "lecam_weight",
    "lecam_decay",
    "discriminator_start",
)
# Trained arrays that every such file stores; it may store others too.
STORED = re.compile(
    r"tokenizer/(latent_tokens|encoder\.(patch_embed\.weight|conv_out\..*)"
    r"|encoder\.transformer\.0\.(ln_1|attn)\..*|decoder\.(mask_token|ffn\.0\.bias"
    r"|(conv_out|text_guidance_proj|ln_pre)\.weight))"
    r"|discriminator/(.*\.bias|(block_in\.0|blocks\.0\.2|to_logits\.2)\.weight)"
)


def _told(goldens: Goldens, name: str) -> dict[str, Any]:
    """Reads the sizes and the training that golden.json tells, all of them."""
    told = goldens.value(name)
    training = goldens.value("training", told)
    return {key: goldens.value(key, told) for key in SIZES} | {
        "training": {key: goldens.value(key, training) for key in TRAINING}
    }


def _config(told: dict[str, Any], net: Discriminator) -> ConfigDict:
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
                        "width": net.width,
                        "stages": net.stages,
                        "grid": net.grid,
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
    told = _told(goldens, check.name)
    critics = {name: sized_critic(goldens, name) for name in SIZED}
    config = _config(told["training"], critics["discriminator"])
    sizes = goldens.sizes(check.name)
    nets = networks(sizes)
    options = config.loss.tokenizer
    judged = {name: critics[name] for name in ("lpips", "convnext")}
    terms = {"nets": nets, "kl": options.kl, "kl_weight": options.kl_weight}

    def loss(trained, frozen, given, key, is_judged):
        judges = make_judges(
            JudgeOptions(**options.judges),
            GanOptions(**options.gan),
            is_judged,
            **judged,
        )
        value, (scalars, made) = reconstruction_terms(
            trained, frozen, given, judges=judges, **terms
        )
        return value, (scalars, (given["image"], made))

    trainer = make_adversarial_trainer(TASK, config, nets, loss)
    state = trainer.start(convert("tokenizer", goldens.state(check.name)))
    image = jnp.zeros((1, told["image_size"], told["image_size"], 3))
    frozen = {
        name: make_critic(goldens, name, net, *[image] * (1 + (name == "lpips")))
        for name, net in critics.items()
    }
    state = state.replace(discriminator=frozen.pop("discriminator"))
    step = jax.jit(trainer.step)
    logs = []
    for i in range(told["training"]["steps"]):
        given = _given(goldens, told, i)
        before = state
        state, scalars = step(state, frozen, given)
        logs.append(jax.device_get(scalars) | trainer.rates(i))
    _compare_logs(check, logs)
    copy = jax.jit(functools.partial(reconstruction_terms, judges={}, **terms))
    _, (_, made) = copy(before.params, {}, given)
    seen = made[:, ::4, ::4].transpose(0, 3, 1, 2)  # every 4th pixel: [b 3 s/4 s/4]
    check.compare("last_reconstruction", seen, ARRAYS)
    _compare_trained(check, state, sizes)


def _compare_trained(
    check: Check, state: AdversarialState, sizes: dict[str, Any]
) -> None:
    """Compares the averages of LeCam, and of what was trained all that is stored."""
    for kind in ("lecam_real", "lecam_fake"):
        check.compare(kind, getattr(state, kind)[None], ARRAYS)
    trained = to_release("tokenizer", jax.device_get(state.params), sizes)
    leaves = flatten_dict(jax.device_get(state.discriminator), sep="/")
    judged = to_source(rules.CRITICS["discriminator"], leaves)
    for prefix, arrays in (("tokenizer", trained), ("discriminator", judged)):
        for name, array in arrays.items():
            key = f"{prefix}/{name}"
            if key in check or STORED.fullmatch(key):
                check.compare(key, array, ARRAYS)


def _compare_logs(check: Check, logs: list[dict[str, Any]]) -> None:
    """Compares every value of every step; those that are 0 in the file must be 0."""
    # A discriminator without weight gives no term.
    steps = {
        name: np.array([log.get(ours, 0.0) for log in logs])
        for ours, name in SCALARS.items()
    }
    convnext = np.array([log["loss/convnext"] for log in logs])
    steps["perceptual"] = steps["lpips"] + convnext
    steps["lpips"] = steps["lpips"] / LPIPS_WEIGHT
    steps["convnext"] = convnext / CONVNEXT_WEIGHT
    for name, values in steps.items():
        first = FIRST_SUMS.get(name, FIRST_TERMS)
        if len(values) <= FIRST:
            check.compare(name, values, first, each=True)
            continue
        check.compare(name, values[:FIRST], first, each=True, rows=slice(FIRST))
        check.compare(name, values[FIRST:], TERMS, each=True, rows=slice(FIRST, None))
