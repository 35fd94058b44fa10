"""Weights of blocks as int8, by qwix: for each block and output channel one scale.

    y = x @ q * scale,   q = round(w / scale),   scale = max |w| / 127.5        (1)

They are the dense layers of attention and MLP in a DiT's and the tokenizer's blocks:
most of all parameters. Modulations are computed once a call, and stay as they are. With
`int8_dynamic` x is rounded too, by the largest value of each of its rows, and integers
are multiplied.
"""

import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike

from flowtok_jax.array_types import Params
from flowtok_jax.models.build import Nets, init_networks
from flowtok_jax.runtime.errors import UserError

# Type of activations in products with quantized weights, None for their own.
QUANTIZED = {"int8": None, "int8_dynamic": "int8"}
LAYERS = r".*blocks/(attention|mlp)/(qkv|proj|fc1|fc2|w12|w3)"
# Networks whose weights are quantized, and their methods that sampling calls.
METHODS = {
    "dit": ("__call__",),
    "student": ("__call__",),
    "shared_dit": ("__call__",),
    "tokenizer": ("__call__", "encode", "decode"),
}


def quantize_blocks(
    nets: Nets, params: Mapping[str, Params], how: str
) -> tuple[Nets, dict[str, Params]]:
    """Returns networks that take quantized weights, and the weights, by group.

    Args:
        how: a name of QUANTIZED.

    Raises:
        UserError: for another name, or where qwix is not installed.
    """
    qwix = _import_qwix(how)
    provider = _make_provider(qwix, how)
    changed = {
        name: qwix.quantize_model(getattr(nets, name), provider, methods=methods)
        for name, methods in METHODS.items()
    }
    nets = nets._replace(**changed)
    found = {}
    for group, of_group in params.items():
        found[group] = {
            name: _quantize_net(qwix, nets, name, own) if name in METHODS else own
            for name, own in of_group.items()
        }
    return nets, found


def check_exact(params: Params) -> None:
    """Refuses quantized parameters, of which there are no files.

    Raises:
        UserError: where some parameters are integers.
    """
    if any(jnp.issubdtype(x.dtype, jnp.integer) for x in jax.tree.leaves(params)):
        raise UserError(
            "quantized weights are not written; load them without quantize, then save "
            "or export"
        )


def _import_qwix(how: str) -> types.ModuleType:
    if how not in QUANTIZED:
        raise UserError(
            f"compute.quantize is {how!r}; expected one of {', '.join(QUANTIZED)}, or "
            "'' for weights as they are"
        )
    try:
        import qwix
    except ImportError as error:
        raise UserError(
            f"compute.quantize={how} needs qwix, which is not installed; run `pip "
            "install 'flowtok_jax[quantize]'`"
        ) from error
    return qwix


def _make_provider(qwix: types.ModuleType, how: str) -> Any:
    """Makes what computes the products of quantized weights."""

    class Provider(qwix.PtqProvider):
        """Products in the type of the activations, as those of other weights."""

        def dot_general(self, lhs, rhs, *args, **kwargs):
            out = super().dot_general(lhs, rhs, *args, **kwargs)
            # Scales are float32, and so would be what they multiply.
            return out if isinstance(rhs, jax.Array) else out.astype(lhs.dtype)

    rule = qwix.QuantizationRule(
        module_path=LAYERS, weight_qtype="int8", act_qtype=QUANTIZED[how]
    )
    return Provider([rule])


def _quantize_net(
    qwix: types.ModuleType, nets: Nets, name: str, params: Params
) -> Params:
    """Quantizes the parameters of one network that its forward pass says so of."""
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    init = jax.eval_shape(lambda key: init_networks(nets, (name,), key), key)
    wanted = flatten_dict(init[name])
    found = {}
    # Leaf by leaf: only one of them is on the device in float32.
    for path, leaf in flatten_dict(params).items():
        abstract = wanted[path]
        is_weight = not isinstance(abstract, jax.ShapeDtypeStruct)
        found[path] = _quantize_leaf(qwix, leaf, abstract) if is_weight else leaf
    return unflatten_dict(found)


def _quantize_leaf(qwix: types.ModuleType, leaf: ArrayLike, abstract: Any) -> Any:
    """Quantizes one kernel of scanned blocks [depth d f], block by block."""
    # `abstract` says how a block does it; by all of `leaf`, scales would be shared.
    block = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), abstract)
    one = jax.vmap(lambda w: qwix.quantize_params({"w": w}, {"w": block})["w"])
    return one(jnp.asarray(leaf))
