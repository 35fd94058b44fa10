"""Networks of metrics: drawn ones, and directories that cannot be loaded."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.convert import critics
from flowtok_jax.convert.__main__ import make_convert_parser
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights import nets
from flowtok_jax.weights.nets import load_metric_net
from tests import tiny


@pytest.fixture
def place(tmp_path):
    """A directory with the tiny CLIP, to break."""
    tiny.write_clip(tmp_path / "source")
    flags = f"--clip_score={tmp_path}/source", f"--out={tmp_path}/metrics"
    critics.convert_metrics(make_convert_parser().parse_args(flags))
    return tmp_path / "metrics"


@pytest.mark.parametrize("name", ["lpips", "clip"])
def test_random_networks_are_the_same_every_time(name):
    net, again = (load_metric_net(name, "random") for _ in range(2))
    assert net.sha256 == again.sha256 == "random"
    assert net.module == again.module
    jax.tree.map(np.testing.assert_array_equal, net.params, again.params)
    assert {x.dtype for x in jax.tree.leaves(net.params)} == {np.dtype("float32")}


def test_random_networks_have_the_published_sizes_but_clip():
    for name in ("inception", "lpips"):
        shapes = tiny.manifest(name)
        count = sum(x.size for x in jax.tree.leaves(load_metric_net(name, "random")[1]))
        dropped = [k for k in shapes if k == "fc.bias" or "tracked" in k or "scal" in k]
        wanted = sum(int(np.prod(shapes[k])) for k in shapes if k not in dropped)
        assert count == wanted
    clip = load_metric_net("clip", "random").module
    assert clip.text.vocab_size == 49408  # the ids of any vocabulary of ours
    assert clip.vision.width == 64


def test_a_leaf_s_draw_is_known():
    """Other values would be another network under the same name."""
    kernel = load_metric_net("lpips", "random").params["conv0_0"]["kernel"]
    assert kernel.shape == (3, 3, 3, 64)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 27), rtol=0.05)
    known = [-0.33743889, -0.09661372, 0.55851835]
    np.testing.assert_allclose(kernel[0, 0, 0, :3], known, rtol=1e-5)


def test_a_random_clip_tells_images_and_captions_apart():
    clip = load_metric_net("clip", "random")
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((3, 64, 64, 3), np.float32))
    ids = jnp.asarray(rng.integers(0, 49408, (3, 77)), jnp.int32)
    image, text = jax.jit(clip.module.apply)({"params": clip.params}, images, ids)
    for vectors in (image, text):
        cosines = np.asarray(vectors @ vectors.T)
        np.testing.assert_allclose(np.diag(cosines), 1, rtol=1e-5)
        assert cosines[~np.eye(3, dtype=bool)].max() < 0.999


@pytest.mark.parametrize("name", nets.NAMES)
def test_float32_is_float32_whatever_the_device(name):
    """A TPU multiplies in bfloat16, a GPU in TF32, where precision is left to them."""
    module = load_metric_net(name, "random").module
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    inputs = {"inception": (images,), "lpips": (images, images)}
    inputs["convnext"] = (images,)
    if name == "clip":
        inputs["clip"] = (
            jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
            jax.ShapeDtypeStruct((1, 77), jnp.int32),
        )
    program = str(jax.make_jaxpr(module.init)(jax.random.key(0), *inputs[name]))
    products = re.findall(r"precision=([\w.]+|\([^)]*\))", program)
    assert len(products) > 10
    assert all("HIGHEST" in precision for precision in products), set(products)


def edit_metrics(edit):
    def damage(place):
        path = place / "metrics.json"
        entries = json.loads(path.read_text())
        edit(entries)
        path.write_text(json.dumps(entries))

    return damage


def flip(place):
    path = place / "clip.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_the_converter_wrote_is_loaded(place):
    net = load_metric_net("clip", str(place))
    assert net.module.features == 24
    state = tiny.state_dict("clip_tiny")
    got = net.params["image_projection"]["kernel"]
    np.testing.assert_array_equal(got, state["visual_projection.weight"].T)
    got = net.params["vision"]["blocks"]["mlp"]["fc2"]["bias"][2]
    wanted = state["vision_model.encoder.layers.2.mlp.fc2.bias"]
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: (p / "metrics.json").unlink(), "metrics.json does not exist; exp"),
        (lambda p: (p / "metrics.json").write_text("{"), "metrics.json cannot be read"),
        (lambda p: (p / "metrics.json").write_text("[]"), "holds a list; expected an"),
        (
            lambda p: (p / "clip.safetensors").unlink(),
            "clip.safetensors does not exist; run `python -m flowtok_jax.convert --c",
        ),
        (flip, "clip.safetensors has sha256 "),
        (edit_metrics(lambda e: e.pop("clip")), "has no weights of clip; run `python"),
        (
            edit_metrics(lambda e: e["clip"]["sizes"].pop("vision")),
            "is not that of this version's networks",
        ),
        (
            edit_metrics(lambda e: e["clip"]["sizes"].update(features=25)),
            "wrong shape (2): image_projection/kernel is (48, 24), expected (48, 25)",
        ),
    ],
)
def test_what_cannot_be_loaded_is_named(place, damage, says):
    damage(place)
    with pytest.raises(UserError) as error:
        load_metric_net("clip", str(place))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_says_what_makes_what_it_lacks(place, tmp_path):
    with pytest.raises(UserError, match="no weights of inception; run .* --inception="):
        load_metric_net("inception", str(place))
    with pytest.raises(
        UserError, match="metrics.json does not exist; expected a directory"
    ):
        load_metric_net("lpips", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no metric has a network 'vgg'"):
        load_metric_net("vgg", "random")
