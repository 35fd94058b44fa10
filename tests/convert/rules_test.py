"""The tables of names cover every published size, both ways."""

import pytest

from flowtok_jax.convert import rules
from flowtok_jax.convert.groups import read_sizes, release_shapes
from tests import tiny

FILES = {
    "flowtok_tiny": "t2i",
    "FlowTok-B": "t2i",
    "FlowTok-XL": "t2i",
    "FlowTok-H": "t2i",
    "flowtitok_tiny": "tokenizer",
    "FlowTiTok-256": "tokenizer",
    "FlowTiTok-512": "tokenizer",
}


@pytest.mark.parametrize(("name", "group"), FILES.items())
def test_our_parameters_have_the_names_and_shapes_of_the_release(name, group):
    manifest = tiny.manifest(name)
    heads = tiny.HEADS if "tiny" in name else None
    sizes = read_sizes(group, manifest, heads)
    assert release_shapes(group, sizes) == manifest


@pytest.mark.parametrize(("name", "group"), FILES.items())
def test_sizes_are_those_of_the_release(name, group):
    known = tiny.GOLDEN[name]
    heads = tiny.HEADS if "tiny" in name else None
    sizes = read_sizes(group, tiny.manifest(name), heads)
    is_tiny = "tiny" in name
    width = 32 if is_tiny else 768
    wanted = {"latent": {"tokens": 77, "channels": 16}, "clip": {"width": width}}
    if group == "tokenizer":
        wanted["tokenizer"] = {
            key: known[key] for key in ("encoder", "decoder", "image_size")
        } | {"patch": known["patch_size"]}
    else:
        projector = known["projector"] if is_tiny else tiny.GOLDEN["projector_full"]
        wanted["dit"] = {key: known[key] for key in ("width", "depth", "heads")}
        wanted["dit"]["mlp_ratio"] = 4
        wanted["align_head"] = {"width": 512}
        wanted["projector"] = {
            "depth": projector["blocks"],
            "heads": projector["heads"],
            "mlp_width": projector["mlp_width"],
        }
    assert sizes == wanted


def test_clip_has_its_hugging_face_names_and_shapes():
    sizes = {
        "latent": {"tokens": 77},
        "clip": {"vocab_size": 49408, "width": 768, "depth": 12, "heads": 12},
    }
    shapes = release_shapes("clip", sizes)
    assert len(shapes) == 4 + 12 * 16
    layer = "text_model.encoder.layers.11"
    for name, shape in {
        "text_model.embeddings.token_embedding.weight": (49408, 768),
        "text_model.embeddings.position_embedding.weight": (77, 768),
        f"{layer}.self_attn.q_proj.weight": (768, 768),
        f"{layer}.self_attn.v_proj.bias": (768,),
        f"{layer}.self_attn.out_proj.weight": (768, 768),
        f"{layer}.layer_norm2.weight": (768,),
        f"{layer}.mlp.fc1.weight": (3072, 768),
        f"{layer}.mlp.fc2.bias": (768,),
        "text_model.final_layer_norm.bias": (768,),
    }.items():
        assert shapes[name] == shape
    assert read_sizes("clip", shapes) == sizes


@pytest.mark.parametrize("group", rules.RULES)
def test_no_name_and_no_leaf_has_two_rules(group):
    sources = [name for rule in rules.RULES[group] for name in rule.sources]
    targets = [rule.target for rule in rules.RULES[group]]
    assert len(sources) == len(set(sources))
    assert len(targets) == len(set(targets))


@pytest.mark.parametrize("change", ["less", "more"])
def test_rules_that_miss_a_leaf_or_invent_one_are_refused(monkeypatch, change):
    ours = rules.RULES["clip"]
    more = (*ours, rules.Rule(("text_model.scale",), "clip/scale", "same"))
    changed = {"less": ours[1:], "more": more}[change]
    wanted = {"less": "clip/embed/embedding", "more": "clip/scale"}[change]
    clip = {"width": 32, "depth": 1, "heads": 4, "vocab_size": 50}
    sizes = {"latent": {"tokens": 6}, "clip": clip}
    assert release_shapes("clip", sizes)
    monkeypatch.setitem(rules.RULES, "clip", changed)
    with pytest.raises(ValueError, match=wanted):
        release_shapes("clip", sizes)
