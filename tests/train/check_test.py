"""All that a run lacks, in one error."""

import pytest

from configs import h, tokenizer
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.train.check import check_run
from flowtok_jax.weights.place import open_start, open_weights
from tests.data import made


@pytest.fixture
def config():
    """FlowTok-H as a newcomer starts it: with nothing but the repository."""
    config = h.get_config()
    config.mesh.fsdp = 3
    return config


def check(config, workdir):
    check_run({"t2i": config}, workdir, open_start)


def test_everything_missing_is_named_with_what_gets_it(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        check(config, tmp_path / "run")
    first, *lines = str(error.value).splitlines()
    assert first == "the run cannot start; 4 things are wrong:"
    said = {line.split()[0]: line for line in lines}
    assert list(said) == ["settings", "data.train", "clip", "tokenizer"]
    assert "mesh.fsdp=3" in said["settings"]
    assert "data/stage1/*.tar matches no file" in said["data.train"]
    assert "--mode=pretokenize" in said["data.train"]
    assert "flowtok_jax.convert --clip=openai/" in said["clip"]
    assert "flowtok_jax.convert --tokenizer=" in said["tokenizer"]
    assert not (tmp_path / "run").exists()


def test_what_a_run_or_its_start_has_is_not_missing(config, demo, tmp_path):
    config.update_from_flattened_dict({"mesh.fsdp": 8, "data.train": "shapes"})
    with pytest.raises(UserError, match="^the run cannot start; 2 things"):
        check(config, tmp_path)
    assert {"clip", "tokenizer"} <= set(open_weights(demo.workdir).groups)
    check(config, demo.workdir)
    config.init_from = str(demo.workdir)
    check(config, tmp_path)
    config.init_from = "nowhere"
    with pytest.raises(UserError, match="^init_from = nowhere does not exist"):
        check(config, tmp_path)


def test_judges_and_weights_to_go_on_from_are_missed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tokenizer.get_config("decoder")
    config.update_from_flattened_dict({"data.train": "shapes", "data.eval": ""})
    config.text.weights = "random"
    with pytest.raises(UserError) as error:
        check_run({"tokenizer": config}, tmp_path / "run", open_start)
    said = {line.split()[0]: line for line in str(error.value).splitlines()[1:]}
    assert list(said) == ["tokenizer", "lpips"]  # for convnext it is the same
    assert "weights/metrics/metrics.json does not exist" in said["lpips"]
    config.eval.weights = ""
    with pytest.raises(
        UserError, match=r"(?s)eval.weights is empty.*--convnext=convnext_"
    ):
        check_run({"tokenizer": config}, tmp_path / "run", open_start)
    config.eval.weights = "random"
    with pytest.raises(UserError, match=r"^no weights of tokenizer; set --config.init"):
        check_run({"tokenizer": config}, tmp_path / "run", open_start)


def test_a_stage_brings_what_the_next_one_needs(config, tmp_path):
    config.update_from_flattened_dict({"mesh.fsdp": 8, "data.train": "shapes"})
    config.text.weights = "random"
    stages = {"tokenizer": config, "t2i": config}
    check_run(stages, tmp_path, open_start)
    with pytest.raises(UserError, match="^no weights of tokenizer"):
        check_run({"t2i": config}, tmp_path, open_start)


def test_a_stage_may_start_from_weights_of_its_own(config, demo, tmp_path):
    config.update_from_flattened_dict({"mesh.fsdp": 8, "data.train": "shapes"})
    own = config.copy_and_resolve_references()
    own.init_from = str(demo.workdir)
    config.text.weights = "random"
    check_run({"tokenizer": config, "t2i": own}, tmp_path, open_start)


def test_data_of_another_kind_is_refused(config, tmp_path, monkeypatch):
    config.update_from_flattened_dict({"mesh.fsdp": 8, "text.weights": "random"})
    source = type("Latents", (), {"content": "moments"})
    monkeypatch.setattr("flowtok_jax.train.check.open_source", lambda *_, **__: source)
    with pytest.raises(UserError, match="tokenizer needs image data.*has moments"):
        check_run({"tokenizer": config}, tmp_path, open_start)


@pytest.mark.parametrize(("share", "what"), [(1e-9, "none"), (1 - 1e-9, "all")])
def test_a_share_without_a_picture_on_each_side_is_refused(
    config, tmp_path, share, what
):
    (tmp_path / "a.png").write_bytes(made.encode(made.picture(8, 8)))
    (tmp_path / "a.txt").write_text("a picture")
    spec = f"folder:{tmp_path}"
    changes = {"mesh.fsdp": 8, "text.weights": "random", "data.train": spec}
    config.update_from_flattened_dict({**changes, "data.held_out": share})
    with pytest.raises(UserError, match=f"holds out {what} of the 1 records"):
        check_run({"tokenizer": config}, tmp_path / "run", open_start)
