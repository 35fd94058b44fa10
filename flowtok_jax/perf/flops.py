"""FLOPs of the networks and of a training step, by arithmetic.

A multiply-add is 2 FLOPs. Dense layers, convolutions and attention (its two products,
over all pairs also where a mask hides some) are counted; norms, activations, losses and
the optimiser, together below one per cent at the published sizes, are not.

    model FLOPs of a step = 3 * forward of what is trained + forward of what is frozen
    recompute fraction    = FLOPs of the forward pass that the remat policy computes
                            a second time / model FLOPs of the step

With everything trained, inside blocks and recomputed in full the fraction is 1/3. What
the compiler recomputes of its own accord is not in it.
"""

from typing import NamedTuple

from flowtok_jax.models.build import Nets
from flowtok_jax.models.clip import ClipText
from flowtok_jax.models.dit import DiT
from flowtok_jax.models.layers import REMAT, swiglu_width
from flowtok_jax.models.text import TextDecoder
from flowtok_jax.models.tokenizer import Tokenizer
from flowtok_jax.tasks.base import Task


class Forward(NamedTuple):
    """Of one row: in the blocks by activation name, and outside of them.

    `unneeded` names outputs that the backward pass does not read: those that are
    only added to something.
    """

    blocks: dict[str, int]
    outside: int
    unneeded: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(self.blocks.values()) + self.outside

    def of(self, rows: int) -> "Forward":
        """That of so many rows."""
        blocks = {name: rows * flops for name, flops in self.blocks.items()}
        return self._replace(blocks=blocks, outside=rows * self.outside)

    def recomputed(self, remat: str) -> int:
        """What a policy computes again in the backward pass."""
        kept = REMAT[remat]
        if kept is None:
            return 0
        again = {
            name: flops
            for name, flops in self.blocks.items()
            if name not in kept and name not in self.unneeded
        }
        if "attention" in kept:  # its weights are computed again, its values not
            again["attention"] = self.blocks["attention"] // 2
        return sum(again.values())


def _blocks(depth: int, tokens: int, width: int, **mlp: int) -> dict[str, int]:
    """Attention, and the MLP's layers by name: weights of each."""
    weights = {"qkv": 3 * width**2, "proj": width**2, **mlp}
    parts = {name: 2 * tokens * count for name, count in weights.items()}
    parts["attention"] = 4 * tokens**2 * width
    return {name: depth * flops for name, flops in parts.items()}


def dit(net: DiT) -> Forward:
    """The velocity field, every row at a time of its own."""
    n, d, c = net.tokens, net.width, net.channels
    hidden = net.mlp_ratio * d
    blocks = _blocks(net.depth, n, d, fc1=d * hidden, fc2=d * hidden)
    blocks["modulation"] = net.depth * 2 * d * 6 * d
    return Forward(blocks, 2 * n * c * d * 2 + sum(_conditions(net)))


def _conditions(net: DiT) -> tuple[int, int]:
    """The time's embedding, and the final layer's modulation."""
    d = net.width
    return 2 * d * (256 + d), 2 * d * 2 * d


def clip(net: ClipText) -> Forward:
    """The text tower."""
    d = net.width
    blocks = _blocks(net.depth, net.context, d, fc1=4 * d * d, fc2=4 * d * d)
    return Forward(blocks, 0, unneeded=("fc2",))


def _post_norm(depth: int, tokens: int, width: int, hidden: int) -> dict[str, int]:
    return _blocks(depth, tokens, width, fc1=width * hidden, fc2=width * hidden)


def projector(nets: Nets) -> Forward:
    """Text features to moments."""
    net, n, e = nets.projector, nets.dit.tokens, nets.clip.width
    blocks = _post_norm(net.depth, n, e, net.mlp_width)
    return Forward(blocks, 2 * n * e * 2 * net.channels)


def align_head(nets: Nets) -> Forward:
    """Text features to what the source is aligned with."""
    net, e = nets.align_head, nets.clip.width
    if net.target != "mlp":
        return Forward({}, 0)
    weights = e * net.width + net.width**2 + net.width * net.channels
    return Forward({}, 2 * nets.dit.tokens * weights)


def text_decoder(net: TextDecoder, tokens: int, channels: int) -> Forward:
    """Text tokens to logits."""
    blocks = _post_norm(net.depth, tokens, net.width, net.mlp_width)
    return Forward(blocks, 2 * tokens * net.width * (channels + net.vocab_size))


def _side(net: Tokenizer, side: dict, length: int, outside: int) -> Forward:
    d = side["width"]
    hidden = swiglu_width(d)
    blocks = _blocks(side["depth"], length, d, w12=2 * d * hidden, w3=d * hidden)
    return Forward(blocks, outside, unneeded=("w3",))


def encoder(net: Tokenizer) -> Forward:
    """Images to moments."""
    places, d = (net.image_size // net.patch) ** 2, net.encoder["width"]
    weights = places * 3 * net.patch**2 + net.tokens * 2 * net.channels
    return _side(net, net.encoder, places + net.tokens, 2 * d * weights)


def decoder(net: Tokenizer, text_width: int) -> Forward:
    """Tokens and text features to images."""
    places, d = (net.image_size // net.patch) ** 2, net.decoder["width"]
    weights = places * 3 * net.patch**2 + net.tokens * (net.channels + text_width)
    smooth = 2 * net.image_size**2 * 3 * 3 * 9
    length = places + 2 * net.tokens
    return _side(net, net.decoder, length, 2 * d * weights + smooth)


def forward(nets: Nets) -> dict[str, list[Forward]]:
    """Every network's forward pass of one row; the tokenizer's in two parts."""
    text = text_decoder(nets.text_decoder, nets.dit.tokens, nets.dit.channels)
    return {
        "clip": [clip(nets.clip)],
        "tokenizer": [
            encoder(nets.tokenizer),
            decoder(nets.tokenizer, nets.clip.width),
        ],
        "projector": [projector(nets)],
        "align_head": [align_head(nets)],
        "dit": [dit(nets.dit)],
        "text_decoder": [text],
    }


class StepFlops(NamedTuple):
    """Of one training step, all devices together."""

    model: int
    recomputed: int

    @property
    def recompute_fraction(self) -> float:
        return self.recomputed / self.model


def train_step(nets: Nets, task: Task, rows: int, has_moments: bool) -> StepFlops:
    """Counts a step of a task over `rows` examples.

    The first layers' inputs need no gradient, which is counted all the same.

    Args:
        has_moments: whether the examples are encoded already.
    """
    costs = forward(nets)
    sides = dict(zip(("encoder", "decoder"), costs["tokenizer"], strict=True))
    passes = [name for name in task.passes if not (has_moments and name == "encoder")]
    frozen = [
        part
        for name in passes
        for part in ([sides[name]] if name in sides else costs[name])
    ]
    model = sum(part.total for part in frozen)
    again = 0
    for name in task.networks:
        for part in costs[name]:
            model += 3 * part.total
            again += part.recomputed(getattr(getattr(nets, name), "remat", "none"))
    return StepFlops(rows * model, rows * again)


def sampling(
    nets: Nets, direction: str, rows: int, *, num_steps: int, scale: float, solver: str
) -> dict[str, Forward]:
    """What each network computes to sample `rows` rows of text_to_image or
    image_to_text; the tokenizer's sides are `encoder` and `decoder`.
    """
    costs = forward(nets)
    flow = _velocities(nets.dit, rows, num_steps, scale, solver)
    if direction == "text_to_image":
        ends = {name: costs[name][0] for name in ("clip", "projector")}
        ends["decoder"] = costs["tokenizer"][1]
    else:
        ends = {"encoder": costs["tokenizer"][0]}
        ends["text_decoder"] = costs["text_decoder"][0]
    return {"dit": flow} | {name: cost.of(rows) for name, cost in ends.items()}


def sampling_total(nets: Nets, direction: str, rows: int, **run) -> int:
    """Counts the FLOPs of sampling `rows` rows, with options as of `sampling`."""
    return sum(c.total for c in sampling(nets, direction, rows, **run).values())


def _velocities(
    net: DiT, rows: int, num_steps: int, scale: float, solver: str
) -> Forward:
    """A guidance scale other than 1 doubles the rows. Modulations are computed once a
    time, for a conditional row and a null one.
    """
    times = num_steps * {"euler": 1, "heun": 2}[solver]
    row, (time, final) = dit(net), _conditions(net)
    every = row._replace(outside=row.outside - time - final)
    every = every.of(times * rows * (1 if scale == 1 else 2))
    once = {"modulation": 2 * times * row.blocks["modulation"]}
    return Forward(every.blocks | once, every.outside + times * (time + 2 * final))
