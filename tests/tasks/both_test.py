"""Both directions by one group: its loss, taken apart, and its start."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowtok_jax.models.dit import one_direction
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import TASKS, init_group
from flowtok_jax.tasks.base import flow_loss
from flowtok_jax.tasks.both import begin_both, both_loss, interleave
from flowtok_jax.tasks.losses import contrastive_alignment, release_kl
from tests import tiny
from tests.tasks.setting import OPTIONS, batch

NETS = tiny.nets()
WITHOUT_ROWS = tiny.nets(shared_dit={"tells_direction": False})
WITHOUT_DROPOUT = tiny.nets(projector={"dropout": 0.0})
WITH_TOWER = tiny.nets(clip={"trained_along": True})
CLEAR = {"null_rate": 0.0}  # no row gets the target of another


# The same of all these networks.
FROZEN = {
    role: tiny.random_params(NETS, group, seed)
    for seed, (role, group) in enumerate(TASKS["both"].frozen.items(), 1)
}


def compute(nets=NETS, params=None, key=1, **changes):
    """The loss and its scalars."""
    params = tiny.random_params(nets, "both") if params is None else params
    options = OPTIONS.both.to_dict() | changes
    loss = functools.partial(both_loss, nets=nets, **options)
    return jax.jit(loss)(params, FROZEN, batch(), jax.random.key(key))


def compute_apart(nets, *, i2t_weight, caption_weight, image_source, target, scale):
    """The loss as a sum of separate ones: two plain DiTs, a forward pass for each."""
    params = tiny.random_params(nets, "both")
    data = batch()
    keys = jax.random.split(jax.random.key(1), 7)
    image, dropout, source, forth, back, end, decoder = keys
    apply = {name: getattr(nets, name).apply for name in (*params, "clip", "tokenizer")}
    tokenizer = FROZEN["tokenizer"]["tokenizer"]
    towers = params if "clip" in params else FROZEN["clip"]
    feats = apply["clip"]({"params": towers["clip"]}, data["caption_ids"])
    pixels = data["image"] / 255
    posterior = apply["tokenizer"]({"params": tokenizer}, pixels, method="encode")
    z_img = posterior.sample(image) * nets.tokenizer.latent_scale
    mean_img = posterior.mean * nets.tokenizer.latent_scale
    own = {"params": params["projector"]}
    text = apply["projector"](
        own, feats, deterministic=False, rngs={"dropout": dropout}
    )
    z_txt = text.sample(source)
    still = apply["projector"](own, feats)
    z_end = scale * (still.mean if target == "mean" else still.sample(end))
    dits = [one_direction(params["shared_dit"], way) for way in (0, 1)]
    how = {"null_rate": 0.5, "parts": 1}
    total = flow_loss(nets, dits[0], z_txt, z_img, forth, **how, time_location=-1.0)
    start = z_img if image_source == "sample" else mean_img
    own = {**how, "time_location": -2.0}
    total += i2t_weight * flow_loss(nets, dits[1], start, z_end, back, **own)
    aligned = apply["align_head"]({"params": params["align_head"]}, feats)
    total += contrastive_alignment(z_txt, *aligned)
    total += 0.01 * release_kl(text.mean, text.logvar).sum()
    logits = apply["text_decoder"](
        {"params": params["text_decoder"]},
        z_txt,
        deterministic=False,
        rngs={"dropout": decoder},
    )
    chances = jax.nn.log_softmax(logits)
    right = jnp.take_along_axis(chances, data["caption_ids"][..., None], -1)
    return total - caption_weight * right.mean()


@pytest.mark.parametrize("nets", [NETS, WITHOUT_ROWS, WITHOUT_DROPOUT, WITH_TOWER])
@pytest.mark.parametrize(
    ("i2t_weight", "caption_weight", "image_source", "target", "scale"),
    [(1.0, 1.0, "sample", "mean", 1.0), (3.0, 0.5, "mean", "sample", 0.35)],
)
def test_the_loss_is_the_sum_of_two_directions_computed_apart(
    nets, i2t_weight, caption_weight, image_source, target, scale
):
    options = {"i2t_weight": i2t_weight, "caption_weight": caption_weight}
    options |= {"image_source": image_source, "target": target}
    wanted = compute_apart(nets, **options, scale=scale)
    path = {"null_rate": 0.5, "time_location": -1.0, "i2t_time_location": -2.0}
    path["text_scale"] = scale
    got, scalars = compute(nets, **options, **path)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    terms = {name: scalars[f"loss/{name}"] for name in ("flow", "align", "kl")}
    total = sum(terms.values()) + scalars["loss/caption"]
    np.testing.assert_allclose(
        got, total + i2t_weight * scalars["loss/flow_i2t"], rtol=1e-5
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_in_parts_value_and_gradient_are_those_of_the_whole(parts):
    params = tiny.random_params(WITHOUT_DROPOUT, "both")
    nets = WITHOUT_DROPOUT._replace(
        text_decoder=WITHOUT_DROPOUT.text_decoder.clone(dropout=0.0)
    )

    def value(params, parts):
        options = OPTIONS.both.to_dict() | {"i2t_weight": 2.0}
        key = jax.random.key(0)
        return both_loss(
            params, FROZEN, batch(), key, nets=nets, parts=parts, **options
        )[0]

    whole, parted = (
        jax.jit(jax.value_and_grad(value), static_argnums=1)(params, n)
        for n in (1, parts)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        whole,
        parted,
    )


def test_rows_of_a_pair_lie_side_by_side():
    found = interleave(jnp.arange(3), 10 + jnp.arange(3))
    assert found.tolist() == [0, 10, 1, 11, 2, 12]


@pytest.mark.parametrize(("nets", "rows"), [(NETS, 4), (WITHOUT_ROWS, 2)])
def test_each_direction_has_rows_of_its_own_or_shares_them(nets, rows):
    params = tiny.random_params(nets, "both")
    table = params["shared_dit"]["indicator"]["embedding"]
    assert len(table) == rows

    def losses(row):
        changed = {"indicator": {"embedding": table.at[row].add(1.0)}}
        dit = params["shared_dit"] | changed
        _, scalars = compute(nets, params | {"shared_dit": dit}, null_rate=0.5)
        return [float(scalars[f"loss/{name}"]) for name in ("flow", "flow_i2t")]

    plain = losses(jnp.zeros(0, int))
    for row in range(rows):
        changed = [a != b for a, b in zip(losses(row), plain, strict=True)]
        assert changed == ([row < 2, row >= 2] if rows == 4 else [True, True])


@pytest.mark.parametrize("target", ["mean", "sample"])
@pytest.mark.parametrize("image_source", ["mean", "sample"])
def test_the_ends_of_image_to_text_are_means_or_samples(image_source, target):
    found = []
    for key in (0, 1):
        still = {"image_source": image_source, "target": target, **CLEAR}
        # A DiT that is 0 everywhere leaves the ends alone in its loss.
        params = tiny.random_params(WITHOUT_DROPOUT, "both")
        params["shared_dit"] = jax.tree.map(jnp.zeros_like, params["shared_dit"])
        _, scalars = compute(WITHOUT_DROPOUT, params, key, **still)
        found.append([scalars["loss/flow_i2t"], scalars["target/std"]])
    (first, target_first), (second, target_second) = found
    assert (target_first == target_second) == (target == "mean")
    assert (first == second) == (image_source == target == "mean")


def test_the_scale_of_text_is_that_of_the_target():
    stds = [float(compute(text_scale=s)[1]["target/std"]) for s in (1.0, 0.25)]
    assert stds[1] == pytest.approx(0.25 * stds[0])


def gradients(nets, **weights):
    off = {"i2t_weight": 0.0, "caption_weight": 0.0, "align_weight": 0.0}
    options = OPTIONS.both.to_dict() | off | {"kl_weight": 0.0} | weights
    params = tiny.random_params(nets, "both")

    def value(params):
        key = jax.random.key(0)
        loss, scalars = both_loss(params, FROZEN, batch(), key, nets=nets, **options)
        return loss - scalars["loss/flow"]

    found = jax.jit(jax.grad(value))(params)
    return {name: float(optax.tree.norm(g)) for name, g in found.items()}


def test_image_to_text_moves_the_dit_alone_and_captions_the_projector_too():
    back = gradients(WITH_TOWER, i2t_weight=1.0)
    assert back.pop("shared_dit") > 1e-3
    assert max(back.values()) < 1e-6
    captions = gradients(WITH_TOWER, caption_weight=1.0)
    moved = {name for name, norm in captions.items() if norm > 1e-6}
    assert moved == {"projector", "text_decoder", "clip"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "mode"}, "loss.both.target is 'mode'; expected one of"),
        ({"image_source": "mode"}, "loss.both.image_source is 'mode'; expected one of"),
        ({"align": "none"}, "align is 'none'; expected one of"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(changes, said):
    with pytest.raises(UserError, match=said):
        compute(**changes)


@pytest.mark.parametrize("nets", [NETS, WITHOUT_ROWS, WITH_TOWER])
def test_it_begins_as_text_to_image_in_both_directions(nets):
    given = {g: tiny.random_params(nets, g, i) for i, g in enumerate(["t2i"])}
    begun = begin_both(nets, given, jax.random.key(0))
    fresh = init_group(nets, "both", jax.random.key(0))
    shapes = [jax.tree.map(jnp.shape, x) for x in (begun, fresh)]
    assert shapes[0] == shapes[1]
    rng = np.random.default_rng(0)
    z = tiny.normal(rng, 4, 6, 4)
    t = jnp.asarray(rng.random(4, np.float32))
    dit = {"params": given["t2i"]["dit"]}
    shared = {"params": begun["shared_dit"]}
    for way, is_null in itertools.product((0, 1), (False, True)):
        null = jnp.full(4, is_null)
        wanted = nets.dit.apply(dit, z, t, null)
        got = nets.shared_dit.apply(shared, z, t, null, jnp.full(4, way))
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_it_begins_with_the_decoder_of_the_text_tokenizer_where_there_is_one():
    given = {g: tiny.random_params(NETS, g) for g in ("t2i", "text_tokenizer")}
    begun = begin_both(NETS, given, jax.random.key(0))
    decoder, projector = (begun[name] for name in ("text_decoder", "projector"))
    jax.tree.map(
        np.testing.assert_array_equal, decoder, given["text_tokenizer"]["text_decoder"]
    )
    jax.tree.map(np.testing.assert_array_equal, projector, given["t2i"]["projector"])
    assert begin_both(NETS, {"clip": {}}, jax.random.key(0)) is None
