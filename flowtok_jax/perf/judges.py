"""FLOPs of the networks that judge the image tokenizer, and of its whole recipe.

Counted as in perf/flops.py, of a step after the discriminator has begun. With F the
forward pass of a network over one image, a row's model FLOPs are

    F of known image + 2 F of made image                 a frozen judge             (1)
    2 F of made image                                    the discriminator, judging (2)
    3 F of known image + 3 F of made image               the discriminator's step   (3)

since frozen weights need no gradient and the made image does, while a known image
needs neither. Resizing to ConvNeXt's size is two products, which are counted.

Computed again are, with `judges.parts` above 1, the passes of (1) and (2), the known
image's too; with `gan.parts` above 1 those of (3); and with `judges.remat` what the
blocks of (1) computed of the made image.
"""

from ml_collections import ConfigDict

from flowtok_jax.models.build import Nets
from flowtok_jax.models.convnext import SIDE, ConvNeXt
from flowtok_jax.models.critics import LPIPS, Discriminator
from flowtok_jax.perf.flops import Forward, StepFlops, encoder
from flowtok_jax.tasks.adversarial import GanOptions, make_discriminator
from flowtok_jax.tasks.tokenizer import DECODER, JudgeOptions


def _conv(size: int, inputs: int, outputs: int, side: int) -> int:
    """Counts a convolution of `size` x `size` weights to maps of `side` x `side`."""
    return 2 * size**2 * inputs * outputs * side**2


def count_lpips(net: LPIPS, side: int) -> Forward:
    """Counts VGG16 over one image."""
    flops = 0
    inputs = 3
    for layer, widths in enumerate(net.layers):
        for width in widths:
            flops += _conv(3, inputs, width, side // 2**layer)
            inputs = width
    return Forward({"conv": flops}, 0)


def count_convnext(net: ConvNeXt, side: int) -> Forward:
    """Counts the logits of one image, its resizing included."""
    blocks = {"conv": 0, "dense1": 0, "dense2": 0}
    outside = 2 * 3 * side * SIDE * (side + SIDE) if side != SIDE else 0
    maps = SIDE
    inputs = 3
    for stage, (depth, width) in enumerate(zip(net.depths, net.widths, strict=True)):
        cut = 2 if stage else 4
        maps //= cut
        outside += _conv(cut, inputs, width, maps)
        blocks["conv"] += depth * _conv(7, 1, width, maps)  # each channel on its own
        for dense in ("dense1", "dense2"):
            blocks[dense] += depth * _conv(1, width, 4 * width, maps)
        inputs = width
    outside += 2 * inputs * net.classes
    # The second layer's output is only scaled and added.
    return Forward(blocks, outside, unneeded=("dense2",))


def count_discriminator(net: Discriminator, side: int) -> Forward:
    """Counts the logits of one image."""
    flops = _conv(5, 3, net.width, side)
    inputs = net.width
    for stage in range(net.stages):
        width = net.width * 2**stage
        flops += _conv(3, inputs, width, side)
        side //= 2
        inputs = width
    flops += _conv(1, inputs, inputs, net.grid) + _conv(5, inputs, 1, net.grid)
    return Forward({}, flops)


def count_judges(judges: JudgeOptions, gan: GanOptions, side: int) -> StepFlops:
    """Counts (1) to (3) of a row, and what of it is computed again."""
    model = 0
    again = 0
    by_parts = judges.parts > 1
    nets = (
        (judges.lpips_weight, count_lpips(LPIPS(), side)),
        (judges.convnext_weight, count_convnext(ConvNeXt(), side)),
    )
    for weight, cost in nets:
        if weight:
            model += 3 * cost.total
            again += 2 * cost.total if by_parts else 0
            again += cost.recomputed("full") if judges.remat else 0
    if gan.weight:
        own = count_discriminator(make_discriminator(gan, "float32"), side).total
        model += 8 * own
        again += own if by_parts else 0
        again += 2 * own if gan.parts > 1 else 0
    return StepFlops(model, again)


def add_recipe(
    cost: StepFlops, options: ConfigDict, nets: Nets, rows: int
) -> StepFlops:
    """Adds the judges of `rows` rows to a step of the tokenizer alone.

    A decoder that is tuned alone saves the encoder's backward pass.

    Args:
        options: the section `tokenizer` of the losses.
    """
    judges = JudgeOptions(**options.judges)
    side = nets.tokenizer.image_size
    model, again = count_judges(judges, GanOptions(**options.gan), side)
    if options.trains == DECODER:
        frozen = encoder(nets.tokenizer)
        model -= 2 * frozen.total
        again -= frozen.recomputed(nets.tokenizer.remat)
    return StepFlops(cost.model + rows * model, cost.recomputed + rows * again)
