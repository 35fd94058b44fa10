"""A run's folder: opened, opened again, and refused."""

import json

import pytest

from configs import demo
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import read_json, write_json
from flowtok_jax.weights import workdir
from flowtok_jax.weights.place import open_weights
from tests import tiny


@pytest.fixture
def config():
    config = demo.get_config()
    config.text.vocabulary_captions = 64
    return config


def stored_config(folder):
    """The config of a run, and the digest of its vocabulary that lies in it."""
    stored = workdir.read_config(folder).to_dict()
    return stored, stored.pop(workdir.VOCABULARY_SHA256)


def test_a_new_workdir_gets_config_and_vocabulary(config, tmp_path):
    vocabulary = workdir.open_workdir(tmp_path / "run", config)
    stored = stored_config(tmp_path / "run")
    assert stored == (config.to_dict(), vocabulary.sha256())
    again = workdir.open_workdir(tmp_path / "run", config)
    caption = ["a red circle at the top left"]
    assert again.encode(caption).tolist() == vocabulary.encode(caption).tolist()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "vocabulary.json"}


def test_a_run_of_before_there_were_keys_goes_on(config, tmp_path):
    workdir.open_workdir(tmp_path, config)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    for section, key in (("compute", "layout"), ("clip", "trained_along")):
        del values[section][key]
    del values["loss"]["both"]["i2t_time_location"]
    path.write_text(json.dumps(values))
    workdir.open_workdir(tmp_path, config)
    # In the demo it has other values than by default.
    assert values["loss"].pop("both")["kl"] == "release_element_mean"
    path.write_text(json.dumps(values))
    workdir.open_workdir(tmp_path, config)
    assert stored_config(tmp_path)[0] == config.to_dict()


@pytest.mark.parametrize(
    "key",
    [
        "train.num_steps",
        "per_stage.t2i.train.num_steps",
        "checkpoint.every",
        "log.preview_samples",
        "sample.num_steps",
        "caption.batch_size",
        "eval.samples",
        "data.threads",
        "mesh.fsdp",
    ],
)
def test_keys_that_change_no_weight_may_differ(config, tmp_path, key):
    workdir.open_workdir(tmp_path, config)
    config.update_from_flattened_dict({key: 3})
    workdir.open_workdir(tmp_path, config)
    assert stored_config(tmp_path)[0] == config.to_dict()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dit.width", 3),
        ("train.seed", 3),
        ("train.batch_size", 3),
        ("data.train", "shapes:seen"),
        ("loss.t2i.align_weight", 0.25),
        ("per_stage.t2i.schedule.lr", 0.25),
        ("optimizer.clip_norm", 3.0),
    ],
)
def test_another_config_is_refused_by_the_names_of_its_keys(
    config, tmp_path, key, value
):
    workdir.open_workdir(tmp_path, config)
    before = (tmp_path / "config.json").read_text()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match="another config") as error:
        workdir.open_workdir(tmp_path, config)
    assert f"{key} is " in str(error.value)
    assert f"{value!r} here" in str(error.value)
    assert "--workdir" in str(error.value)
    assert (tmp_path / "config.json").read_text() == before


def test_many_differing_keys_are_counted(config, tmp_path):
    workdir.open_workdir(tmp_path, config)
    for key in ("width", "depth", "heads"):
        config.dit[key] = config.clip[key] = 3 * config.dit[key]
    with pytest.raises(UserError, match="and 2 more"):
        workdir.open_workdir(tmp_path, config)


def test_stages_of_several_commands_are_remembered_in_order(config, tmp_path):
    for stages in (("tokenizer",), ("t2i", "tokenizer"), ("tokenizer",)):
        config.stages = stages
        workdir.open_workdir(tmp_path, config)
    assert workdir.read_config(tmp_path).stages == ("tokenizer", "t2i")


def test_a_config_that_its_vocabulary_refuses_is_not_stored(config, tmp_path):
    config.data.train = "moon:rocks"
    with pytest.raises(UserError, match="moon"):
        workdir.open_workdir(tmp_path, config)
    assert not list(tmp_path.iterdir())


def test_a_deleted_vocabulary_is_not_quietly_made_anew(config, tmp_path):
    workdir.open_workdir(tmp_path, config)
    (tmp_path / "vocabulary.json").unlink()
    with pytest.raises(UserError, match=r"vocabulary.json does not exist, and .*back"):
        workdir.open_workdir(tmp_path, config)
    assert not (tmp_path / "vocabulary.json").exists()


def test_a_vocabulary_that_was_exchanged_is_refused(config, tmp_path):
    workdir.open_workdir(tmp_path, config)
    Vocabulary.train(["other words"], 64, 8).save(tmp_path)
    with pytest.raises(UserError, match=r"is not the vocabulary of the weights beside"):
        workdir.open_workdir(tmp_path, config)
    with pytest.raises(UserError, match=r"is not the vocabulary of the weights beside"):
        open_weights(tmp_path).vocabulary(8)


def test_a_workdir_of_an_older_version_has_no_digest_and_gets_one(config, tmp_path):
    vocabulary = workdir.open_workdir(tmp_path, config)
    old = read_json(tmp_path / "config.json")
    del old[workdir.VOCABULARY_SHA256]
    write_json(tmp_path / "config.json", old)
    assert open_weights(tmp_path).vocabulary(8).sha256() == vocabulary.sha256()
    workdir.open_workdir(tmp_path, config)
    assert stored_config(tmp_path)[1] == vocabulary.sha256()


def test_a_key_that_is_newer_than_the_run_has_its_default(config, tmp_path):
    workdir.open_workdir(tmp_path, config)
    old = read_json(tmp_path / "config.json")
    del old["data"]["captions"]
    write_json(tmp_path / "config.json", old)
    workdir.open_workdir(tmp_path, config)
    write_json(tmp_path / "config.json", old)
    config.data.captions = "first_line"
    with pytest.raises(UserError, match="data.captions is 'whole' there, 'first_line'"):
        workdir.open_workdir(tmp_path, config)


def test_a_vocabulary_that_the_text_tower_has_no_rows_for_is_refused(config, tmp_path):
    tiny.write_clip(tmp_path / "clip")
    config.text.vocabulary = str(tmp_path / "clip")
    with pytest.raises(UserError, match=r"has \d+ tokens \(start \d+, end \d+\), the "):
        workdir.open_workdir(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config.json in .*make demo"):
        workdir.read_config(tmp_path)


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert path.read_text().endswith("}\n")
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]
