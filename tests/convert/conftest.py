"""The tiny models as a user has them: the release's files, and a CLIP directory."""

import json

import numpy as np
import pytest

from flowtok_jax.convert import __main__ as convert
from flowtok_jax.weights.safetensors import write_safetensors
from tests import run, tiny

MODELS = {"flowtok": "flowtok_tiny", "tokenizer": "flowtitok_tiny"}


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """A directory with flowtok.safetensors, tokenizer.safetensors and clip/."""
    directory = tmp_path_factory.mktemp("released")
    for name, model in MODELS.items():
        state = {k: np.asarray(x) for k, x in tiny.state_dict(model).items()}
        write_safetensors(directory / f"{name}.safetensors", state)
    clip = directory / "clip"
    clip.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "re", "red</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    (clip / "vocab.json").write_text(json.dumps(vocab))
    (clip / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    (clip / "config.json").write_text(
        json.dumps({"text_config": {"num_attention_heads": 4}, "vision_config": {}})
    )
    sizes = dict(width=32, depth=2, heads=4, vocab_size=len(vocab))
    state = tiny.clip_state_dict({"latent": {"tokens": 77}, "clip": sizes})
    write_safetensors(clip / "model.safetensors", state)
    return directory


@pytest.fixture
def flags(released):
    """The command line that converts them, without --out."""
    return [
        f"--flowtok={released}/flowtok.safetensors",
        f"--tokenizer={released}/tokenizer.safetensors",
        f"--clip={released}/clip",
        "--heads=dit=4,projector=4",
    ]


@pytest.fixture
def command(capsys):
    """Calls `python -m flowtok_jax.convert` in this process."""

    def call(*arguments: str) -> run.Outcome:
        capsys.readouterr()
        with run.own_logging():
            status = convert.main(arguments)
        return run.Outcome(status, *capsys.readouterr())

    return call
