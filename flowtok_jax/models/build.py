"""Networks from a config, and where a group's parameters are found.

Parameters live elsewhere, in groups of networks that one task trains together; `t2i`
and `text_tokenizer` each have a projector of their own. The group `both` has one for
all: `t2i`, `i2t` and `text_tokenizer` are parts of it, and whatever needs one of them
takes it from there where it is not to be had by itself.
"""

from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flowtok_jax.array_types import Key, Params
from flowtok_jax.models.clip import ClipText
from flowtok_jax.models.dit import AverageDiT, DiT, SharedDiT, one_direction
from flowtok_jax.models.text import AlignHead, TextDecoder, TextProjector
from flowtok_jax.models.tokenizer import Tokenizer
from flowtok_jax.runtime.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")
BOTH = "both"
# Group that BOTH stands for -> direction of the DiT; None: it has none.
STANDS_FOR = {"t2i": 0, "i2t": 1, "text_tokenizer": None}
# What BOTH is made of, beside a text tower that is trained along.
BOTH_NETWORKS = ("projector", "align_head", "shared_dit", "text_decoder")


class Nets(NamedTuple):
    """The modules of one config."""

    clip: ClipText
    tokenizer: Tokenizer
    projector: TextProjector
    align_head: AlignHead
    dit: DiT
    text_decoder: TextDecoder
    student: AverageDiT  # of the DiT's sizes
    shared_dit: SharedDiT  # of the DiT's sizes too


def make_nets(config: ConfigDict) -> Nets:
    """Builds the modules; their parameters are made by `init_networks` or loaded."""
    if config.compute.dtype not in DTYPES:
        raise UserError(
            f"compute.dtype is {config.compute.dtype!r}; expected one of {DTYPES}"
        )
    tokens = config.latent.tokens
    channels = config.latent.channels
    latent = dict(tokens=tokens, channels=channels)
    dtype = dict(dtype=jnp.dtype(config.compute.dtype), layout=config.compute.layout)
    text = dict(**dtype, remat=config.compute.remat)
    big = dict(**text, attention=config.compute.attention)
    tokenizer = config.tokenizer.to_dict()
    return Nets(
        clip=ClipText(**config.clip, context=tokens, **dtype),
        tokenizer=Tokenizer(**tokenizer, **latent, **big),
        projector=TextProjector(**config.projector, channels=channels, **text),
        align_head=AlignHead(**config.align_head, channels=channels, **dtype),
        dit=DiT(**config.dit, **latent, **big),
        text_decoder=TextDecoder(
            **config.text_decoder,
            vocab_size=config.clip.vocab_size,
            width=config.clip.width,
            **text,
        ),
        # Weights of versions that had no such network say nothing of it.
        student=AverageDiT(**config.dit, **config.get("student", {}), **latent, **big),
        shared_dit=SharedDiT(
            **config.dit, **config.get("shared_dit", {}), **latent, **big
        ),
    )


def init_networks(nets: Nets, names: tuple[str, ...], key: Key) -> dict[str, Params]:
    """Draws fresh float32 parameters of some of the networks."""
    tokenizer = nets.tokenizer
    tokens = jnp.zeros((1, tokenizer.tokens, tokenizer.channels))
    text_feats = jnp.zeros((1, tokenizer.tokens, nets.clip.width))
    side = tokenizer.image_size
    # One row each: only shapes matter to the parameters.
    inputs = {
        "clip": (jnp.zeros((1, tokenizer.tokens), jnp.int32),),
        "tokenizer": (jnp.zeros((1, side, side, 3)), text_feats),
        "projector": (text_feats,),
        "align_head": (text_feats,),
        "dit": (tokens, jnp.zeros(1), jnp.zeros(1, bool)),
        "text_decoder": (tokens,),
        "student": (tokens, *[jnp.zeros(1)] * 2, jnp.ones(1)),
        "shared_dit": (tokens, jnp.zeros(1), jnp.zeros(1, bool), jnp.zeros(1, int)),
    }
    # The order of names decides the keys, and so the bits of a fresh start.
    keys = jax.random.split(key, len(names))
    return {
        name: getattr(nets, name).init(k, *inputs[name])["params"]
        for name, k in zip(names, keys, strict=True)
    }


def abstract_networks(nets: Nets, names: tuple[str, ...]) -> dict[str, Params]:
    """Returns shapes and dtypes of networks' parameters, computing no values."""
    return jax.eval_shape(lambda: init_networks(nets, names, jax.random.key(0)))


def abstract_both(nets: Nets) -> dict[str, Params]:
    """Returns shapes and dtypes of the parameters of BOTH."""
    tower = ("clip",) if nets.clip.trained_along else ()
    return abstract_networks(nets, (*BOTH_NETWORKS, *tower))


def find_provider(group: str, groups: Container[str]) -> str:
    """Returns which of some groups has another one's parameters: BOTH, or itself.

    A group that is there itself goes before BOTH; of one that is not there at all the
    name is returned.
    """
    if group in STANDS_FOR and group not in groups and BOTH in groups:
        return BOTH
    return group


def find_providers(needed: Iterable[str], *places: Container[str]) -> list[str]:
    """Returns the groups that have all those needed, each as in the first of several
    places that has it at all.
    """
    found = set()
    # Where places are asked in turn, a part in the first hides a group in the next.
    for group in needed:
        there = [groups for groups in places if has_group(group, groups)]
        found.add(find_provider(group, there[0] if there else ()))
    return sorted(found)


def has_group(group: str, groups: Container[str]) -> bool:
    """Returns whether some groups have a group, be it as a part of BOTH."""
    return find_provider(group, groups) in groups


def take_group(params: Mapping[str, Params], group: str) -> Params:
    """Returns the parameters of a group, by network, from those of several groups."""
    if find_provider(group, params) == group:
        return params[group]
    # Arrays are shared, not copied; of the DiT only a table of a few rows is cut.
    found = dict(params[BOTH])
    shared = found.pop("shared_dit")
    direction = STANDS_FOR[group]
    if direction is not None:
        found["dit"] = one_direction(shared, direction)
    return found
