"""Networks from a config.

Parameters live elsewhere, in groups of networks that one task trains together; `t2i`
and `text_tokenizer` each have a projector of their own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flowtok_jax.array_types import Key, Params
from flowtok_jax.models.clip import ClipText
from flowtok_jax.models.dit import AverageDiT, DiT
from flowtok_jax.models.text import AlignHead, TextDecoder, TextProjector
from flowtok_jax.models.tokenizer import Tokenizer
from flowtok_jax.runtime.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")


class Nets(NamedTuple):
    """The modules of one config."""

    clip: ClipText
    tokenizer: Tokenizer
    projector: TextProjector
    align_head: AlignHead
    dit: DiT
    text_decoder: TextDecoder
    student: AverageDiT  # of the DiT's sizes


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
        # Weights of versions that had no student say nothing of it.
        student=AverageDiT(**config.dit, **config.get("student", {}), **latent, **big),
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
    }
    # The order of names decides the keys, and so the bits of a fresh start.
    keys = jax.random.split(key, len(names))
    return {
        name: getattr(nets, name).init(k, *inputs[name])["params"]
        for name, k in zip(names, keys, strict=True)
    }
