"""benchmarks/tokenizer_recipe.py on the demo at a few steps."""

import json

import pytest
from PIL import Image

from benchmarks import tokenizer_recipe as recipe
from configs import demo as demo_config
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks.tokenizer import judges_of


def test_every_variant_but_the_plain_one_changes_the_config():
    flags = recipe.parse(["--steps=20"])
    plain = recipe.make_config(flags, "pixels", 0)
    assert plain.loss.tokenizer.gan.weight == 0
    assert judges_of(plain) == ()
    for name in recipe.VARIANTS:
        config = recipe.make_config(flags, name, 0)
        assert (config.to_dict() == plain.to_dict()) == (name == "pixels")
        assert config.per_stage.tokenizer.train.num_steps == 20
        assert config.loss.tokenizer.gan.start == 10


def test_a_folder_has_splits_and_sizes_of_its_own():
    flags = recipe.parse(["--data=data/emoji", "--t2i_steps=3"])
    config = recipe.make_config(flags, "gan", 5)
    assert config.data.train == "folder:data/emoji/train"
    assert config.data.eval == "folder:data/emoji/held_out"
    assert config.tokenizer.image_size == 64
    assert config.stages == ("tokenizer", "t2i")
    assert config.train.seed == 5


@pytest.mark.slow
def test_variants_are_trained_measured_and_kept(tmp_path, monkeypatch):
    config = demo_config.get_config()
    config.eval.weights = None  # without Inception, which takes minutes
    config.train.steps_per_call = 1
    for stage in ("tokenizer", "t2i"):
        config.per_stage[stage].train.batch_size = 8
    monkeypatch.setattr(recipe.demo, "get_config", config.copy_and_resolve_references)
    argv = [f"--out={tmp_path}", "--only=pixels,gan", "--steps=2", "--samples=4"]
    table = recipe.run([*argv, "--t2i_steps=2"])
    assert "| gan | `gan.weight=0.01`" in table
    report = json.loads((tmp_path / "recipe.json").read_text())
    for each in report["runs"]:
        assert {"psnr_db_n4", "accuracy"} <= set(each["metrics"])
    # The originals above both variants, eight in a row.
    with Image.open(tmp_path / "pictures.png") as image:
        assert image.width > 8 * 32
        assert image.height > 3 * 32
    trained = []
    monkeypatch.setattr(recipe.train, "train_stages", lambda *_: trained.append(1))
    assert recipe.run([*argv, "--t2i_steps=2"]) == table
    assert trained == []


def test_an_unknown_variant_is_refused(tmp_path):
    with pytest.raises(UserError, match="no variant 'paint'; expected some of pixels"):
        recipe.run([f"--out={tmp_path}", "--only=paint"])
