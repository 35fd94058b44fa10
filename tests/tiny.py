"""Tiny networks and a batch for tests, and the weights behind the golden numbers."""

import functools
import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.convert.goldens import Goldens
from flowtok_jax.convert.groups import convert, release_shapes
from flowtok_jax.models.build import Nets, make_nets
from flowtok_jax.tasks import abstract_group
from flowtok_jax.weights.safetensors import write_safetensors

GOLDENS = Path(__file__).parent / "goldens"
FOLDER = Goldens(GOLDENS)
GOLDEN, golden = FOLDER.values, FOLDER.arrays
draw, uniform = FOLDER.draw, FOLDER.uniform
HEADS = {"dit": 4, "projector": 4, "clip": 4}


def config(**sections: dict) -> ConfigDict:
    """The sections that `make_nets` reads; keys of a given section replace ours."""
    transformer = dict(width=32, depth=2, heads=4)
    tiny = ConfigDict(
        dict(
            compute=dict(
                dtype="float32", remat="none", attention="xla", layout="batch"
            ),
            latent=dict(tokens=6, channels=4),
            clip=dict(**transformer, vocab_size=50, embedding_std=1.0),
            tokenizer=dict(
                encoder=dict(transformer),
                decoder=dict(transformer),
                image_size=16,
                patch=8,
            ),
            projector=dict(depth=2, heads=4, mlp_width=24),
            align_head=dict(width=20),
            dit=dict(transformer),
            text_decoder=dict(depth=2, heads=4, mlp_width=24),
        )
    )
    tiny.update(sections)
    return tiny


def nets(**sections: dict) -> Nets:
    """Tiny networks, or others where sections say so."""
    return make_nets(config(**sections))


def batch(size: int = 4, seed: int = 0) -> dict[str, jax.Array]:
    """Random data for the tiny networks, under the keys of a training batch."""
    rng, tiny = np.random.default_rng(seed), config()
    tokens, channels = tiny.latent.tokens, tiny.latent.channels
    side = tiny.tokenizer.image_size
    return {
        "image": jnp.asarray(rng.random((size, side, side, 3), np.float32)),
        "moments": normal(rng, size, tokens, 2 * channels),
        "caption_ids": jnp.asarray(rng.integers(0, 50, (size, tokens), np.int32)),
        "text_feats": normal(rng, size, tokens, tiny.clip.width),
    }


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Standard normal float32 values."""
    return jnp.asarray(rng.standard_normal(shape, np.float32))


def random_like(params, seed: int = 0, std: float = 0.2):
    """Noise of the shapes of a tree, so that no leaf is at zero; compiles nothing."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return jnp.asarray(std * rng.standard_normal(leaf.shape, np.float32), "float32")

    return jax.tree.map(draw, params)


def random_params(networks: Nets, group: str, seed: int = 0) -> dict:
    """Parameters of a group that are not at their initial values."""
    return random_like(abstract_group(networks, group), seed)


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released state dict."""
    return {key: array.shape for key, array in FOLDER.state(name).items()}


def state_dict(name: str) -> dict[str, np.ndarray]:
    """The state dict behind the goldens: "flowtok_tiny" or "flowtitok_tiny"."""
    return {key: np.asarray(array) for key, array in FOLDER.state(name).items()}


def clip_state_dict(sizes: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a text tower under its Hugging Face names."""
    rng = np.random.default_rng(seed)
    shapes = release_shapes("clip", sizes)
    return {k: 0.1 * rng.standard_normal(s, np.float32) for k, s in shapes.items()}


def write_clip(directory: Path) -> None:
    """The CLIP behind clip_tiny.npz as a directory of Hugging Face's."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {k: np.asarray(x) for k, x in FOLDER.state("clip_tiny").items()}
    write_safetensors(directory / "model.safetensors", state)
    letters = [chr(code) for code in (*range(97, 123), *range(33, 66))]
    tokens = [*letters, *(f"{c}</w>" for c in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    heads = {"num_attention_heads": 4}
    config = {"text_config": heads, "vision_config": heads}
    (directory / "config.json").write_text(json.dumps(config))


def write_clip_vocabulary(directory: Path) -> None:
    """CLIP's real vocabulary in the form of the hub's files, from its merges alone."""
    with gzip.open(GOLDENS / "clip_merges.txt.gz", "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    pairs = [line for line in lines[1:] if line]
    # In OpenAI's order: bytes by their code, but printable ones first.
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    tokens = [*letters, *(f"{x}</w>" for x in letters)]
    tokens += [pair.replace(" ", "") for pair in pairs]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    directory.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_text("\n".join(lines))


def golden_captions() -> tuple[list[str], np.ndarray]:
    """Captions, and their ids by open_clip's tokenizer: [60, 77]."""
    rows = json.loads((GOLDENS / "clip_ids.json").read_text())["rows"]
    return [row["caption"] for row in rows], np.array([row["ids"] for row in rows])


@functools.cache
def golden_nets() -> tuple[Nets, dict]:
    """The networks behind the tiny goldens, and their parameters by name."""
    flow, image = GOLDEN["flowtok_tiny"], GOLDEN["flowtitok_tiny"]
    projector = flow["projector"]
    networks = nets(
        latent=dict(tokens=flow["tokens"], channels=flow["channels"]),
        clip=dict(width=flow["text_feature_dim"]),
        dit={key: flow[key] for key in ("width", "depth", "heads")},
        projector=dict(
            depth=projector["blocks"],
            heads=projector["heads"],
            mlp_width=projector["mlp_width"],
        ),
        align_head=dict(width=flow["align_head_width"]),
        tokenizer=dict(
            encoder=image["encoder"],
            decoder=image["decoder"],
            image_size=image["image_size"],
            patch=image["patch_size"],
        ),
    )
    params = convert("t2i", state_dict("flowtok_tiny"), HEADS)
    return networks, params | convert("tokenizer", state_dict("flowtitok_tiny"))


def relative_error(got, wanted) -> float:
    """L2 norm of the difference over that of what is wanted."""
    got, wanted = (np.asarray(x, np.float64) for x in (got, wanted))
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
