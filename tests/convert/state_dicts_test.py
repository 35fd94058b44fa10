"""Files of weights, whole and damaged."""

import argparse
import json
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from flowtok_jax.convert import state_dicts
from flowtok_jax.convert.state_dicts import read_clip, read_state, write_state
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.safetensors import read_safetensors, write_safetensors

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "half": np.float16([1.5, -2.0]),
    "brain": np.array([1.0, 3.0]).astype(jnp.bfloat16),
    "scalar": np.array(2.5, np.float32),
    "ids": np.arange(3),
}
HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>" * 9


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def equal(got, wanted):
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def archive(path, damage=lambda data: data):
    """A file as PyTorch writes them, as far as can be seen without PyTorch."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", b"pickled")
        file.writestr("x/data/0", bytes(range(256)) * 64)
    path.write_bytes(damage(path.read_bytes()))
    return path


def test_safetensors_come_back_and_are_mapped(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, ARRAYS)
    got = read_safetensors(path)
    equal(got, ARRAYS)
    assert all(not array.flags.writeable for array in got.values())
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # is aligned


def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path):
    known = {k: x for k, x in ARRAYS.items() if k != "brain"}
    write_safetensors(tmp_path / "ours", known)
    equal(safetensors.numpy.load_file(tmp_path / "ours"), known)
    dense = {name: np.array(x, order="C") for name, x in known.items()}
    safetensors.numpy.save_file(dense, tmp_path / "theirs", metadata={"format": "pt"})
    equal(read_state(tmp_path / "theirs"), known)


@pytest.mark.parametrize("length", [0x80, 0x4B50])  # a pickle's start, and "PK"
def test_a_header_s_length_is_not_taken_for_another_format(tmp_path, length):
    empty = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(empty | {"__metadata__": {}}).encode()
    path = tmp_path / "a.safetensors"
    head = length.to_bytes(8, "little") + text.ljust(length)
    path.write_bytes(head + np.float32(3).tobytes())
    equal(read_state(path), {"w": np.array([3], np.float32)})


def test_an_unknown_type_is_named(tmp_path):
    header = {"w": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(UserError, match="a.safetensors: w is of type F8_E4M3"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (HTML, "is a web page"),
        (b"\n  " + HTML, "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"some other bytes " * 9, "neither a file of PyTorch nor of safetensors"),
        (None, "does not exist"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_what_is_no_file_of_weights_is_named(tmp_path, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} .*{says}"):
        read_state(path)


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_cut_safetensors_are_refused(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, ARRAYS | {"more": np.zeros((99, 99))})
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UserError, match="a.safetensors is not a whole safetensors"):
        read_state(path)


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_cut_pth_is_refused_even_without_torch(tmp_path, kept):
    path = archive(tmp_path / "a.pth", lambda data: data[: int(kept * len(data))])
    with pytest.raises(UserError, match=r"a.pth is cut short or damaged \(\d+ bytes"):
        read_state(path)


def test_a_pth_with_one_byte_changed_is_refused(tmp_path):
    def damage(data):
        place = len(data) // 2
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    path = archive(tmp_path / "a.pth", damage)
    with pytest.raises(UserError, match="a.pth is damaged: .* part x/data/0"):
        read_state(path)


def test_without_torch_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    path = archive(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"pip install 'flowtok_jax\[convert\]'"):
        read_state(path)
    with pytest.raises(UserError, match=r"pip install 'flowtok_jax\[convert\]'"):
        write_state(tmp_path / "b.pth", {})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pth_gives_its_arrays(tmp_path, torch, zipped):
    path = tmp_path / "a.pth"
    tensors = {k: torch.from_numpy(np.array(x, np.float32)) for k, x in ARRAYS.items()}
    tensors["brain"] = tensors["brain"].to(torch.bfloat16)
    tensors["half"] = torch.nn.Parameter(tensors["half"].half())
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    wanted = {k: x.astype(np.float32) for k, x in ARRAYS.items()}
    wanted |= {k: ARRAYS[k] for k in ("brain", "half")}
    equal(read_state(path), wanted)


def test_a_real_pth_that_is_cut_or_changed_is_refused(tmp_path, torch):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(9999.0)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(UserError, match="cut short"):
        read_state(path)
    path.write_bytes(data[:9999] + bytes([data[9999] ^ 64]) + data[10000:])
    with pytest.raises(UserError, match="checksum"):
        read_state(path)


def test_a_pth_without_checksums_is_read(tmp_path, torch):
    path = tmp_path / "a.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(read_state(path)["w"], np.ones(3))


@pytest.mark.parametrize(
    ("inside", "used"),
    [
        ({"state_dict": 1, "epoch": 3}, 1),
        ({"model": 1, "optimizer": {"lr": 1.0}}, 1),
        ({"model": 1, "ema": 2}, 2),
    ],
)
def test_a_training_checkpoint_gives_its_best_weights_and_says_so(
    tmp_path, torch, caplog, inside, used
):
    names = ("state_dict", "model", "ema")
    content = {
        k: {"w": torch.full((2,), float(v))} if k in names else v
        for k, v in inside.items()
    }
    path = tmp_path / "a.pth"
    torch.save(content, path)
    np.testing.assert_array_equal(read_state(path)["w"], np.full(2, used))
    for name in inside:
        assert name in caplog.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"w": 1.0}, "something else .*'w' is a float"),
        ({}, "something else .*nothing"),
        ([1, 2], "a list"),
        (argparse.Namespace(lr=1), "no plain state dict .*argparse.Namespace"),
    ],
)
def test_another_content_is_named_and_never_run(tmp_path, torch, content, says):
    path = tmp_path / "a.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=f"a.pth holds {says}"):
        read_state(path)


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".bin"])
def test_a_state_dict_is_written_whole_and_never_over_another(tmp_path, ending):
    if ending != ".safetensors":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    path = tmp_path / f"a{ending}"
    state = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    write_state(path, state)
    equal(read_state(path), state)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="exists already"):
        write_state(path, {"w": np.zeros(1, np.float32)})
    equal(read_state(path), state)


def test_a_state_dict_goes_nowhere_else(tmp_path):
    with pytest.raises(UserError, match="ends in none of"):
        write_state(tmp_path / "a.onnx", {})
    with pytest.raises(UserError, match="nowhere is no directory"):
        write_state(tmp_path / "nowhere" / "a.safetensors", {})
    with pytest.raises(KeyError):  # complex numbers have no name in the format
        write_state(tmp_path / "a.safetensors", {"w": np.ones(2, np.complex64)})
    assert not list(tmp_path.iterdir())


def test_a_clip_directory_gives_its_tower_and_heads(released, tmp_path):
    state, heads = read_clip(released / "clip")
    assert heads == {"text": 4}
    assert all(name.startswith("text_model.") for name in state)
    # As transformers 5 saves a text tower by itself.
    bare = {name.removeprefix("text_model."): x for name, x in state.items()}
    write_safetensors(tmp_path / "model.safetensors", bare)
    again, heads = read_clip(tmp_path)
    assert heads == {}
    equal(again, state)


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "gelu")])
def test_a_tower_that_computes_something_else_is_refused(
    released, tmp_path, key, value
):
    source = released / "clip" / "model.safetensors"
    (tmp_path / "model.safetensors").symlink_to(source)
    for config in ({key: value}, {"text_config": {key: value}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=f"{key} of the text tower is '{value}'"):
            read_clip(tmp_path)


def test_a_clip_of_pytorch_is_read_where_there_is_no_other(released, tmp_path, torch):
    state, _ = read_clip(released / "clip")
    write_state(tmp_path / "pytorch_model.bin", state)
    again, _ = read_clip(state_dicts.find_clip(str(tmp_path), local_files_only=True))
    equal(again, state)


def test_a_directory_without_clip_or_its_vocabulary_is_named(tmp_path):
    with pytest.raises(UserError, match="no CLIP weights; expected one of model.saf"):
        read_clip(tmp_path)
    with pytest.raises(UserError, match="no vocabulary; expected vocab.json"):
        state_dicts.read_clip_vocabulary(tmp_path, 77, 49408)
