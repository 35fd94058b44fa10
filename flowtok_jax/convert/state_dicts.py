"""State dicts in files, PyTorch's own (.pth, .bin) and safetensors; CLIP directories.

PyTorch is needed for its own files only (the extra `convert`), and unpickles nothing
but tensors (`weights_only=True`). A file's content tells its format, not its ending.
"""

import contextlib
import importlib.util
import json
import logging
import pathlib
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowtok_jax.data.vocabulary import CLIP_FILES, Vocabulary
from flowtok_jax.runtime import hub
from flowtok_jax.runtime.errors import UserError, WriteError
from flowtok_jax.runtime.files import check_writable, new_file
from flowtok_jax.weights.safetensors import (
    check_file,
    read_safetensors,
    write_safetensors,
)

# Keys under which training checkpoints keep a state dict, best first: samples are drawn
# with EMA weights.
CONTAINERS = ("ema", "model_ema", "model", "state_dict")
CLIP_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Fixed choices of our towers, by the names of CLIP's config.json.
CLIP_FIXED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Puts the name of a file before the UserErrors that its content causes."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_state(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the state dict of a file, mapped into memory where its format allows.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    check_file(path)
    with path.open("rb") as file:
        head = file.read(16)
    # A safetensors file begins with the length of its JSON header, 8 bytes that may
    # look like the beginning of another format: so it is asked for first.
    if head[8:9] == b"{":
        return read_safetensors(path)
    if head.startswith(b"PK"):  # a zip archive, since PyTorch 1.6
        _check_archive(path)
        return _tensors(path, _unpickle(path, mmap=True))
    if head.startswith(b"\x80"):  # a bare pickle, before PyTorch 1.6
        return _tensors(path, _unpickle(path, mmap=False))
    raise UserError(
        f"{path} is neither a file of PyTorch nor of safetensors; expected a .pth, "
        ".bin or .safetensors file"
    )


def write_state(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict, whole or not at all, in the format of the path's ending.

    Raises:
        UserError: if the ending is none of the known ones, or the file exists.
    """
    check_target(path)
    with new_file(path) as part:
        if path.suffix == ".safetensors":
            write_safetensors(part, state)
            return
        torch = _torch(path)
        # torch.from_numpy warns about arrays that are not writable.
        copies = {k: torch.from_numpy(np.array(x)) for k, x in state.items()}
        try:
            torch.save(copies, part)
        except RuntimeError as error:  # as PyTorch's writer calls a full disk
            said = str(error).splitlines()[0]
            raise WriteError(f"{path} cannot be written ({said}); make room") from error


def check_target(path: pathlib.Path) -> None:
    """Refuses a path that `write_state` would not write."""
    if path.suffix not in (".safetensors", ".pth", ".bin"):
        raise UserError(f"{path} ends in none of .safetensors, .pth, .bin")
    if path.exists():
        raise UserError(f"{path} exists already; give another file, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no directory; make it first")
    check_writable(path)
    if path.suffix != ".safetensors":
        _torch(path)


def has_torch() -> bool:
    """Returns whether PyTorch is installed, and so its own files can be read."""
    return importlib.util.find_spec("torch") is not None


def _torch(path: pathlib.Path):
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a file of PyTorch, which is not installed; `pip install "
            "'flowtok_jax[convert]'`, or use a .safetensors file, which needs none"
        ) from error
    return torch


def _check_archive(path: pathlib.Path) -> None:
    """Refuses an archive that is cut short or whose checksums, if any, are wrong."""
    # PyTorch itself does not compare checksums.
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch can be told to write none, which leaves them all 0.
            has_checksums = any(info.CRC for info in archive.infolist())
            damaged = archive.testzip() if has_checksums else None
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(
            f"{path} is cut short or damaged ({path.stat().st_size} bytes; {error}); "
            "download it again"
        ) from error
    if damaged:
        raise UserError(
            f"{path} is damaged: the checksum of its part {damaged} is wrong; download "
            "it again"
        )


def _unpickle(path: pathlib.Path, mmap: bool) -> Any:
    torch = _torch(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # PyTorch's message opens with the advice to run the file's code: not passed on.
        found = str(error).splitlines() or [""]
        reason = next((line for line in found if "Unsupported" in line), found[0])
        reason = reason.split(". ", 1)[0].strip()
        raise UserError(
            f"{path} holds no plain state dict ({type(error).__name__}: {reason}); "
            "expected tensors by name, as of torch.save(model.state_dict(), FILE)"
        ) from error


def _tensors(path: pathlib.Path, content: Any) -> dict[str, np.ndarray]:
    """Returns arrays by name, out of a training checkpoint if the content is one."""
    torch = _torch(path)
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__}; expected tensors by name"
        )
    inside = [name for name in CONTAINERS if isinstance(content.get(name), Mapping)]
    if inside:
        others = [str(name) for name in content if name != inside[0]]
        logging.warning(
            "%s holds %r, which is used, and %s, which is not",
            path,
            inside[0],
            ", ".join(others) or "nothing else",
        )
        content = content[inside[0]]
    wrong = [
        f"{name!r} is a {type(value).__name__}"
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]
    if wrong or not content:
        raise UserError(
            f"{path} holds something else than tensors by name: "
            f"{', '.join(wrong[:4]) or 'nothing'}; expected a state dict, alone or as "
            f"one of {', '.join(CONTAINERS)}"
        )
    return {name: _array(torch, value.detach()) for name, value in content.items()}


def _array(torch: Any, tensor: Any) -> np.ndarray:
    # numpy has no bfloat16 of its own; ml_dtypes' has the same bits.
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def find_clip(source: str, local_files_only: bool) -> pathlib.Path:
    """Returns a CLIP directory, downloaded to the cache if the source is a hub id."""
    # Weights are asked for in one format after the other, safetensors first: a
    # repository has several, each of gigabytes.
    for name in CLIP_WEIGHTS:
        files = ("config.json", *CLIP_FILES, name)
        directory = hub.find_directory(
            source, files=files, local_files_only=local_files_only
        )
        if (directory / name).is_file():
            break
    return directory


def find_clip_weights(directory: pathlib.Path) -> pathlib.Path:
    """Returns the path of the weights in a CLIP directory.

    Raises:
        UserError: if the directory has none.
    """
    for name in CLIP_WEIGHTS:
        if (directory / name).is_file():
            return directory / name
    raise UserError(
        f"{directory} has no CLIP weights; expected one of {', '.join(CLIP_WEIGHTS)}"
    )


def read_clip(
    directory: pathlib.Path, towers: Sequence[str] = ("text",)
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Reads the state dict of a CLIP directory, and heads by tower if config.json says.

    Args:
        towers: "text", "vision": towers that must compute what ours do.

    Raises:
        UserError: if there are no weights, or a tower computes something else than
            ours.
    """
    weights = find_clip_weights(directory)
    config = directory / "config.json"
    told = json.loads(config.read_text()) if config.is_file() else {}
    heads = {}
    for tower in towers:
        # The config of a text tower by itself has no sections.
        values = told.get(f"{tower}_config", told if tower == "text" else {})
        for key, ours in CLIP_FIXED.items():
            if values.get(key, ours) != ours:
                raise UserError(
                    f"{config}: {key} of the {tower} tower is {values[key]!r}; ours "
                    f"computes {ours!r} only, as openai/clip-vit-large-patch14-336 does"
                )
        if "num_attention_heads" in values:
            heads[tower] = values["num_attention_heads"]
    state = read_state(weights)
    if "embeddings.token_embedding.weight" in state:
        # transformers 5 saves a text tower by itself without the prefix.
        state = {f"text_model.{name}": array for name, array in state.items()}
    return state, heads


def read_clip_vocabulary(
    directory: pathlib.Path, context: int, vocab_size: int
) -> Vocabulary:
    """Reads the vocabulary of a CLIP directory.

    Args:
        vocab_size: rows of the weights' embedding.

    Raises:
        UserError: if its files do not exist, or are not of the weights.
    """
    vocabulary = Vocabulary.read_clip(directory, context)
    vocabulary.check(vocab_size, directory)
    return vocabulary
