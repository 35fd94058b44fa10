"""Released state dicts to our parameters and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.convert.groups import convert, find_ignored, read_sizes, to_release
from flowtok_jax.models.clip import ClipText
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import abstract_group, networks_of
from tests import tiny
from tests.models.clip_test import slow_clip

CLIP_SIZES = {
    "latent": {"tokens": 6},
    "clip": {"vocab_size": 50, "width": 32, "depth": 2, "heads": 4},
}
GROUP_NAMES = ("t2i", "tokenizer", "clip")


def make_state(group: str) -> dict:
    if group == "clip":
        return tiny.clip_state_dict(CLIP_SIZES)
    return tiny.state_dict(
        {"t2i": "flowtok_tiny", "tokenizer": "flowtitok_tiny"}[group]
    )


def shapes(state: dict) -> dict:
    return {name: np.shape(values) for name, values in state.items()}


@pytest.mark.parametrize("group", GROUP_NAMES)
def test_round_trip_is_exact(group):
    state = make_state(group)
    params = convert(group, state, tiny.HEADS)
    assert tuple(sorted(params)) == tuple(sorted(networks_of(group, tiny.nets())))
    sizes = read_sizes(group, shapes(state), tiny.HEADS)
    back = to_release(group, params, sizes)
    assert shapes(back) == shapes(state)
    for name, values in state.items():
        np.testing.assert_array_equal(back[name], values, err_msg=name)
        assert back[name].dtype == np.float32
    again = convert(group, back, tiny.HEADS)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("group", ["t2i", "tokenizer"])
def test_every_leaf_of_our_networks_is_set(group):
    nets, _ = tiny.golden_nets()
    params = convert(group, make_state(group), tiny.HEADS)
    got, wanted = (
        jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)
        for tree in (params, dict(abstract_group(nets, group)))
    )
    assert got == wanted


def test_clip_features_are_those_of_the_state_dict():
    """The slow tower reads the same weights by their Hugging Face names."""
    state = tiny.clip_state_dict(CLIP_SIZES)

    def layer(name, kernel=True):
        weight = state[f"text_model.{name}.weight"]
        key, weight = ("kernel", weight.T) if kernel else ("scale", weight)
        return {key: weight, "bias": state[f"text_model.{name}.bias"]}

    def block(i):
        name = f"encoder.layers.{i}"
        parts = [layer(f"{name}.self_attn.{part}_proj") for part in "qkv"]
        qkv = {key: np.concatenate([p[key] for p in parts], -1) for key in parts[0]}
        return {
            "norm1": layer(f"{name}.layer_norm1", kernel=False),
            "norm2": layer(f"{name}.layer_norm2", kernel=False),
            "attention": {"qkv": qkv, "proj": layer(f"{name}.self_attn.out_proj")},
            "mlp": {fc: layer(f"{name}.mlp.{fc}") for fc in ("fc1", "fc2")},
        }

    embeddings = "text_model.embeddings"
    slow = {
        "embed": {"embedding": state[f"{embeddings}.token_embedding.weight"]},
        "positions": state[f"{embeddings}.position_embedding.weight"],
        "blocks": jax.tree.map(lambda *x: np.stack(x), block(0), block(1)),
        "norm": layer("final_layer_norm", kernel=False),
    }
    ids = np.array([[4, 0, 49, 7, 7, 1]], np.int32)
    params = convert("clip", state, tiny.HEADS)["clip"]
    clip = ClipText(**CLIP_SIZES["clip"], context=6)
    got = jax.jit(clip.apply)({"params": params}, jnp.asarray(ids))
    assert tiny.relative_error(got, slow_clip(slow, ids, heads=4)) < 1e-5


def test_a_whole_clip_gives_its_text_tower_and_says_what_it_drops():
    state = tiny.clip_state_dict(CLIP_SIZES)
    others = {
        "vision_model.encoder.layers.0.mlp.fc1.weight": np.zeros((4, 4)),
        "visual_projection.weight": np.zeros((4, 4)),
        "text_projection.weight": np.zeros((4, 4)),
        "logit_scale": np.zeros(()),
        "text_model.embeddings.position_ids": np.arange(6)[None],
    }
    wanted = convert("clip", state, tiny.HEADS)
    got = convert("clip", state | others, tiny.HEADS)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    reasons = find_ignored("clip", state | others)
    assert set(reasons) == set(others)
    assert all(reasons.values())


@pytest.mark.parametrize("group", ["t2i", "tokenizer"])
def test_leftovers_of_open_clip_are_dropped(group):
    state = make_state(group)
    leftover = {"open_clip_model.visual.proj": np.zeros((2, 2))}
    got = convert(group, state | leftover, tiny.HEADS)
    jax.tree.map(np.testing.assert_array_equal, got, convert(group, state, tiny.HEADS))
    assert set(find_ignored(group, state | leftover)) == set(leftover)


def test_tau_is_that_of_the_state_dict_or_its_initial_value():
    state = make_state("t2i")
    state["t2t_temperature"] = np.float32(1.25)
    assert convert("t2i", state, tiny.HEADS)["align_head"]["tau"] == 1.25
    del state["t2t_temperature"]
    tau = convert("t2i", state, tiny.HEADS)["align_head"]["tau"]
    np.testing.assert_allclose(tau, np.log(1 / 0.07), rtol=1e-6)


def test_half_precision_becomes_float32():
    state = {name: x.astype(np.float16) for name, x in make_state("t2i").items()}
    params = convert("t2i", state, tiny.HEADS)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    bias = params["dit"]["embed"]["bias"]
    np.testing.assert_array_equal(bias, state["x_embedder.bias"].astype(np.float32))


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("t2i", "x_embedder.weight"),
        ("t2i", "blocks.1.attn.qkv.bias"),
        ("t2i", "context_encoder.layers.1.attn.W_K.weight"),
        ("t2i", "pos_embed"),
        ("tokenizer", "latent_tokens"),
        ("tokenizer", "decoder.positional_embedding.freqs_sin"),
        ("tokenizer", "encoder.transformer.2.mlp.w3.bias"),
        ("clip", "text_model.encoder.layers.0.self_attn.v_proj.bias"),
    ],
)
def test_missing_renamed_and_extra_names_are_refused(group, name):
    state = make_state(group)
    values = state.pop(name)
    with pytest.raises(UserError, match="missing") as error:
        convert(group, state, tiny.HEADS)
    assert name in str(error.value)
    assert "not used" not in str(error.value)
    with pytest.raises(UserError, match=r"not used \(1\).*missing \(1\)") as error:
        convert(group, state | {f"module.{name}": values}, tiny.HEADS)
    assert f"not used (1): module.{name};" in str(error.value)
    assert f"missing (1): {name}" in str(error.value)
    with pytest.raises(UserError, match=r"not used \(1\): extra.weight$"):
        convert(group, state | {name: values, "extra.weight": values}, tiny.HEADS)


@pytest.mark.parametrize(
    ("group", "name", "shape"),
    [
        ("t2i", "x_embedder.weight", (65, 16)),
        ("t2i", "x_embedder.weight", (128, 16)),
        ("t2i", "x_embedder.weight", (64,)),
        ("t2i", "x_embedder.bias", (64, 1)),
        ("t2i", "pos_embed", (77, 64)),
        ("t2i", "t2t_temperature", (1,)),
        ("t2i", "blocks.1.attn.qkv.weight", (64, 192)),
        ("t2i", "blocks.2.mlp.fc1.weight", (128, 64)),
        ("t2i", "context_encoder.layers.1.attn.W_K.bias", (33,)),
        ("tokenizer", "encoder.patch_embed.weight", (64, 16, 16, 3)),
        ("tokenizer", "decoder.ffn.0.weight", (768, 96)),
        ("tokenizer", "decoder.mask_token", (96,)),
        ("tokenizer", "encoder.positional_embedding.freqs_cos", (25, 16)),
        ("tokenizer", "encoder.positional_embedding.freqs_cos", (16, 15)),
        ("clip", "text_model.encoder.layers.1.mlp.fc1.weight", (64, 32)),
    ],
)
def test_a_wrong_shape_is_refused(group, name, shape):
    state = make_state(group) | {name: np.zeros(shape, np.float32)}
    with pytest.raises(UserError, match="wrong shape|not a multiple") as error:
        convert(group, state, tiny.HEADS)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("group", "name"),
    [("t2i", "pos_embed"), ("tokenizer", "decoder.positional_embedding.freqs_cos")],
)
def test_a_fixed_table_that_is_not_ours_is_refused(group, name):
    state = make_state(group)
    nearly = state | {name: state[name] + 1e-6}
    assert convert(group, nearly, tiny.HEADS)
    for values in (state[name] + 1e-3, state[name][..., ::-1], state[name] * np.nan):
        with pytest.raises(UserError, match=f"{name}.* differs from our table"):
            convert(group, state | {name: values}, tiny.HEADS)


@pytest.mark.parametrize(("group", "network"), [("t2i", "dit"), ("clip", "clip")])
def test_heads_that_nothing_tells_must_be_given(group, network):
    state = make_state(group)
    others = {name: n for name, n in tiny.HEADS.items() if name != network}
    with pytest.raises(UserError, match=f"give heads={{'{network}': N}}"):
        convert(group, state, others)
    with pytest.raises(UserError, match="not a multiple of 5"):
        convert(group, state, tiny.HEADS | {network: 5})
    given = read_sizes(group, shapes(state), tiny.HEADS | {network: 2})
    assert given[network]["heads"] == 2


def test_to_release_refuses_parameters_of_other_sizes():
    params = convert("clip", make_state("clip"), tiny.HEADS)
    sizes = {"latent": {"tokens": 7}, "clip": CLIP_SIZES["clip"]}
    with pytest.raises(UserError, match=r"clip/positions is \(6, 32\), expected \(7"):
        to_release("clip", params, sizes)


def test_arrays_that_need_no_joining_are_not_copied():
    state = make_state("t2i")
    params = convert("t2i", state, tiny.HEADS)
    embed = params["dit"]["embed"]["kernel"]
    assert np.shares_memory(embed, state["x_embedder.weight"])
