"""FLOPs of the networks and of a training step, by arithmetic.

A multiply-add is 2 FLOPs. Dense layers, convolutions and attention (its two products,
over all pairs also where a mask hides some) are counted; norms, activations, losses and
the optimiser, together below one per cent at the published sizes, are not.

    model FLOPs = 3 * forward of what is trained + forward of what is frozen        (1)
    recompute fraction = FLOPs of the forward pass that the remat policy computes
                         a second time / model FLOPs                                (2)

With everything trained, inside blocks and recomputed in full the fraction is 1/3. What
the compiler recomputes of its own accord is not in it.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from flowtok_jax.flow.samplers import AVERAGE
from flowtok_jax.models.build import Nets
from flowtok_jax.models.clip import ClipText
from flowtok_jax.models.dit import DiT
from flowtok_jax.models.layers import REMAT, swiglu_width
from flowtok_jax.models.text import TextDecoder
from flowtok_jax.models.tokenizer import Tokenizer
from flowtok_jax.tasks import networks_of
from flowtok_jax.tasks.base import Task


class Forward(NamedTuple):
    """FLOPs of one row's forward pass.

    Attributes:
        blocks: those in the blocks, by activation name.
        outside: those outside of the blocks.
        unneeded: outputs that the backward pass does not read, since they are only
            added to something.
    """

    blocks: dict[str, int]
    outside: int
    unneeded: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """FLOPs of the whole pass."""
        return sum(self.blocks.values()) + self.outside

    def of(self, rows: int) -> "Forward":
        """Multiplies by a number of rows."""
        blocks = {name: rows * flops for name, flops in self.blocks.items()}
        return self._replace(blocks=blocks, outside=rows * self.outside)

    def recomputed(self, remat: str) -> int:
        """Counts what a policy computes again in the backward pass."""
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
    """Counts blocks of attention and an MLP.

    Args:
        mlp: weights of the MLP's layers, by name.
    """
    # A multiply-add is 2 FLOPs, below too.
    weights = {"qkv": 3 * width**2, "proj": width**2, **mlp}
    parts = {name: 2 * tokens * count for name, count in weights.items()}
    parts["attention"] = 4 * tokens**2 * width  # queries by keys, weights by values
    return {name: depth * flops for name, flops in parts.items()}


def dit(net: DiT) -> Forward:
    """Counts the velocity field, every row at a time of its own."""
    n = net.tokens
    d = net.width
    hidden = net.mlp_ratio * d
    blocks = _blocks(net.depth, n, d, fc1=d * hidden, fc2=d * hidden)
    # Shift, scale and gate of both branches, once a row and not once a token.
    blocks["modulation"] = net.depth * 2 * d * 6 * d
    ends = 2 * 2 * n * net.channels * d  # tokens in, velocity out
    return Forward(blocks, ends + sum(_conditions(net)))


def _conditions(net: DiT) -> tuple[int, int]:
    """Counts the time's embedding, and the final layer's modulation."""
    d = net.width
    return 2 * d * (256 + d), 2 * d * 2 * d


def clip(net: ClipText) -> Forward:
    """Counts the text tower."""
    d = net.width
    blocks = _blocks(net.depth, net.context, d, fc1=4 * d * d, fc2=4 * d * d)
    return Forward(blocks, 0, unneeded=("fc2",))


def _post_norm(depth: int, tokens: int, width: int, hidden: int) -> dict[str, int]:
    return _blocks(depth, tokens, width, fc1=width * hidden, fc2=width * hidden)


def projector(nets: Nets) -> Forward:
    """Counts text features to moments."""
    net = nets.projector
    n = nets.dit.tokens
    e = nets.clip.width
    blocks = _post_norm(net.depth, n, e, net.mlp_width)
    return Forward(blocks, 2 * n * e * 2 * net.channels)


def align_head(nets: Nets) -> Forward:
    """Counts text features to the targets of alignment."""
    net = nets.align_head
    e = nets.clip.width
    if net.target != "mlp":
        return Forward({}, 0)
    weights = e * net.width + net.width**2 + net.width * net.channels
    return Forward({}, 2 * nets.dit.tokens * weights)


def text_decoder(net: TextDecoder, tokens: int, channels: int) -> Forward:
    """Counts text tokens to logits."""
    blocks = _post_norm(net.depth, tokens, net.width, net.mlp_width)
    return Forward(blocks, 2 * tokens * net.width * (channels + net.vocab_size))


def _side(net: Tokenizer, side: dict, length: int, outside: int) -> Forward:
    d = side["width"]
    hidden = swiglu_width(d)
    blocks = _blocks(side["depth"], length, d, w12=2 * d * hidden, w3=d * hidden)
    return Forward(blocks, outside, unneeded=("w3",))


def encoder(net: Tokenizer) -> Forward:
    """Counts images to moments."""
    places = (net.image_size // net.patch) ** 2
    d = net.encoder["width"]
    weights = places * 3 * net.patch**2 + net.tokens * 2 * net.channels
    return _side(net, net.encoder, places + net.tokens, 2 * d * weights)


def decoder(net: Tokenizer, text_width: int) -> Forward:
    """Counts tokens and text features to images."""
    places = (net.image_size // net.patch) ** 2
    d = net.decoder["width"]
    weights = places * 3 * net.patch**2 + net.tokens * (net.channels + text_width)
    smooth = 2 * net.image_size**2 * 3 * 3 * 9  # a 3 x 3 convolution of RGB to RGB
    length = places + 2 * net.tokens  # patches, image tokens, text features
    return _side(net, net.decoder, length, 2 * d * weights + smooth)


def forward(nets: Nets) -> dict[str, list[Forward]]:
    """Counts every network's forward pass of one row.

    The tokenizer's has two parts, `encoder` and `decoder`, which also stand alone.
    """
    text = text_decoder(nets.text_decoder, nets.dit.tokens, nets.dit.channels)
    sides = {
        "encoder": [encoder(nets.tokenizer)],
        "decoder": [decoder(nets.tokenizer, nets.clip.width)],
    }
    return {
        "clip": [clip(nets.clip)],
        "tokenizer": [*sides["encoder"], *sides["decoder"]],
        **sides,
        "projector": [projector(nets)],
        "align_head": [align_head(nets)],
        "dit": [dit(nets.dit)],
        "text_decoder": [text],
        "student": [dit(nets.student)],
        "shared_dit": [dit(nets.shared_dit).of(2)],  # a pair goes both ways
    }


class StepFlops(NamedTuple):
    """FLOPs of one step, all devices together: (1), and those of (2)."""

    model: int
    recomputed: int

    @property
    def recompute_fraction(self) -> float:
        """The share (2)."""
        return self.recomputed / self.model


def count_train_step(
    nets: Nets, task: Task, options: Mapping[str, Any], rows: int, has_moments: bool
) -> StepFlops:
    """Counts (1) and (2) of a task's step over `rows` examples.

    What judges add to the image tokenizer's step is in perf/judges.py.
    The first layers' inputs need no gradient, which is counted all the same.

    Args:
        options: of config.loss[TASK].
        has_moments: whether the examples are encoded already.
    """
    costs = forward(nets)
    trained = networks_of(task.group, nets)
    done = {*trained, "encoder"} if has_moments else {*trained}
    more = task.more_passes(options)
    passes = Counter(task.passes)
    passes.update(more)
    model = sum(
        count * part.total
        for name, count in passes.items()
        if name not in done
        for part in costs[name]
    )
    again = 0
    for name in trained:
        # A row of the batch may be several rows of the network.
        times = 1 + more.get(name, 0)
        for part in costs[name]:
            model += 3 * times * part.total
            remat = getattr(getattr(nets, name), "remat", "none")
            again += times * part.recomputed(remat)
    return StepFlops(round(rows * model), round(rows * again))


# Networks of a direction of sampling beside the flow's.
ENDS = {
    "text_to_image": ("clip", "projector", "decoder"),
    "image_to_text": ("encoder", "text_decoder"),
}


def count_sampling(
    nets: Nets, direction: str, rows: int, *, num_steps: int, scale: float, solver: str
) -> dict[str, Forward]:
    """Counts what each network computes to sample `rows` rows of a direction."""
    costs = forward(nets)
    flow = _velocities(nets.dit, rows, num_steps, scale, solver)
    return {"dit": flow} | {name: costs[name][0].of(rows) for name in ENDS[direction]}


def _velocities(
    net: DiT, rows: int, num_steps: int, scale: float, solver: str
) -> Forward:
    """Counts the flow's calls of the DiT, for all rows.

    A guidance scale other than 1 doubles the rows, but not of a distilled flow, which
    has it inside. Modulations are computed once a time, for a conditional row and a
    null one.
    """
    times = num_steps * {"euler": 1, "heun": 2, AVERAGE: 1}[solver]
    row = dit(net)
    time, final = _conditions(net)
    # What depends on time alone leaves the rows' part.
    every = row._replace(outside=row.outside - time - final)
    every = every.of(times * rows * (1 if scale == 1 or solver == AVERAGE else 2))
    once = {"modulation": 2 * times * row.blocks["modulation"]}
    return Forward(every.blocks | once, every.outside + times * (time + 2 * final))
