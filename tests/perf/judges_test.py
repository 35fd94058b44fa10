"""FLOPs of judges by arithmetic against those that XLA counts, and of their options."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from configs import tokenizer as config_of
from flowtok_jax.models.build import make_nets
from flowtok_jax.models.convnext import ConvNeXt
from flowtok_jax.models.critics import LPIPS, Discriminator
from flowtok_jax.perf import flops, judges
from flowtok_jax.tasks.accumulate import by_parts
from flowtok_jax.tasks.adversarial import GanOptions, discriminator_loss
from flowtok_jax.tasks.tokenizer import JudgeOptions, make_judges

ROWS = 2
# XLA leaves out products with padding, of which smaller images have much.
SIDE = 256
CONVNEXT = ConvNeXt(depths=(1, 1, 1, 1))  # XLA counts a loop's body once
DISCRIMINATOR = Discriminator()
GAN = GanOptions(0.1, 0, None, 0.001, 0.999, 128, 3, 16, 1)


@pytest.fixture(autouse=True)
def _cheap_activations(monkeypatch):
    """XLA counts the exact GELU too: 6 % of ConvNeXt's narrow blocks."""
    monkeypatch.setattr(nn, "gelu", lambda x, approximate: nn.relu(x))


def name_of(value):
    return getattr(value, "__name__", type(value).__name__)


def image(side=SIDE, rows=ROWS):
    return jax.ShapeDtypeStruct((rows, side, side, 3), jnp.float32)


@functools.cache
def params_of(net, side=SIDE):
    images = [image(side)] * (2 if isinstance(net, LPIPS) else 1)
    return jax.eval_shape(net.init, jax.random.key(0), *images)["params"]


def counted(function, *shapes) -> float:
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def apply(net):
    return lambda params, *images: net.apply({"params": params}, *images)


@pytest.mark.parametrize(
    ("net", "count", "side", "times"),
    [
        (LPIPS(), judges.count_lpips, SIDE, 2),  # of both images
        (CONVNEXT, judges.count_convnext, SIDE, 1),
        (CONVNEXT, judges.count_convnext, 512, 1),
        (DISCRIMINATOR, judges.count_discriminator, SIDE, 1),
        (DISCRIMINATOR, judges.count_discriminator, 512, 1),
    ],
    ids=name_of,
)
def test_a_judge_has_the_flops_that_xla_counts(net, count, side, times):
    wanted = ROWS * times * count(net, side).total
    got = counted(apply(net), params_of(net, side), *[image(side)] * times)
    assert got == pytest.approx(wanted, rel=0.04)


def test_the_published_networks_have_the_multiply_adds_of_their_papers():
    """Simonyan & Zisserman's VGG16 without its dense layers, Liu et al.'s Table 1."""
    vgg = judges.count_lpips(LPIPS(), 224).total
    small = judges.count_convnext(ConvNeXt(), 224).total
    assert vgg / 2 == pytest.approx(15.35e9, rel=0.01)
    assert small / 2 == pytest.approx(8.7e9, rel=0.01)


def gradient(net, parts=1):
    """The FLOPs of a judge's gradient with respect to the made image."""
    if isinstance(net, ConvNeXt):

        def judge(params, known, made):
            logits = [apply(net)(params, x) for x in (known, made)]
            return jnp.square(jax.lax.stop_gradient(logits[0]) - logits[1]).mean(1)

    else:
        judge = apply(net)
    run = by_parts(judge, parts)
    grad = jax.grad(lambda made, params, known: run(params, known, made).mean())
    return counted(grad, image(), params_of(net), image())


@pytest.mark.parametrize(
    ("net", "count"),
    [(LPIPS(), judges.count_lpips), (CONVNEXT, judges.count_convnext)],
    ids=name_of,
)
def test_a_frozen_judge_costs_three_passes_and_remat_what_it_says(net, count):
    cost = count(net, SIDE)
    plain = gradient(net)
    assert plain == pytest.approx(3 * ROWS * cost.total, rel=0.07)
    again = gradient(net.clone(remat=True)) - plain
    wanted = ROWS * cost.recomputed("full")
    assert again == pytest.approx(wanted, abs=0.04 * ROWS * cost.total)


def test_the_discriminator_judges_in_two_passes_and_learns_in_six():
    params = params_of(DISCRIMINATOR)
    options = JudgeOptions(0.0, 0.0, "float32", 1, False)
    judge = make_judges(options, GAN, True)["gan"][1]
    grad = jax.grad(lambda made, params: judge(params, made, made).mean())
    judging = counted(grad, image(), params)

    def learn(params, known, made):
        averages = jnp.zeros(()), jnp.zeros(())
        module = dict(module=DISCRIMINATOR, lecam_weight=0.001)
        return discriminator_loss(params, known, made, averages, **module)[0]

    learning = counted(jax.grad(learn), params, image(), image())
    wanted = ROWS * judges.count_judges(options, GAN, SIDE).model
    assert judging + learning == pytest.approx(wanted, rel=0.06)
    assert learning / judging == pytest.approx(3, rel=0.06)


def recipe(variant="256", **changes):
    config = config_of.get_config(variant)
    config.update_from_flattened_dict(
        {f"loss.tokenizer.{key}": value for key, value in changes.items()}
    )
    none = flops.StepFlops(0, 0)
    return judges.add_recipe(none, config.loss.tokenizer, make_nets(config), 3)


def test_a_recipe_counts_the_judges_that_it_has():
    off = {"judges.lpips_weight": 0.0, "judges.convnext_weight": 0.0, "gan.weight": 0.0}
    names = dict(zip(off, ("lpips", "convnext", "discriminator"), strict=True))
    nets = dict(zip(off, (LPIPS(), ConvNeXt(), Discriminator()), strict=True))
    for key, passes in zip(off, (3, 3, 8), strict=True):
        others = {name: 0.0 for name in off if name != key}
        forward = getattr(judges, f"count_{names[key]}")(nets[key], 256).total
        assert recipe(**others).model == 3 * passes * forward
    assert recipe(**off) == (0, 0)


def test_parts_and_remat_compute_again():
    assert recipe().recomputed == 0
    parts = recipe(**{"judges.parts": 3})
    remat = recipe(**{"judges.remat": True})
    both = recipe(**{"judges.parts": 3, "judges.remat": True})
    own = recipe(**{"gan.parts": 3})
    assert parts.model == remat.model == both.model == recipe().model
    assert 0 < remat.recomputed < parts.recomputed
    twice = 2 * judges.count_discriminator(DISCRIMINATOR, SIDE).total
    assert own.recomputed == 3 * twice
    assert both.recomputed == parts.recomputed + remat.recomputed


def test_a_decoder_tuned_alone_saves_the_encoder_s_backward_pass():
    nets = make_nets(config_of.get_config("256"))
    saved = recipe().model - recipe("decoder").model
    assert saved == 3 * 2 * flops.encoder(nets.tokenizer).total
