"""A folder of golden numbers: its sizes, its arrays, and the weights behind them.

    draw(name, shape)    a normal draw, seeded by the folder's salt and the name
    weight(name, shape)  running_var: 1 + |draw| / 10; matrices: draw / sqrt(fan in);
                         *.weight, *.g: 1 + draw / 10; others: draw / 10

Fixed tables and the logit scale are not drawn: they are as the release starts them.
Weights so made need no file, however large the model (the folder's README).
"""

import json
import math
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flowtok_jax.convert import critics, rules
from flowtok_jax.convert.convert import read_sizes
from flowtok_jax.models.layers import rope_tables, sincos_positions
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.safetensors import Shape


class Drawn(NamedTuple):
    """An array that is made when it is asked for."""

    shape: Shape
    make: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.make(), dtype)


class Goldens:
    """The folder.

    Raises:
        UserError: where it is none, or its weights follow another rule than ours.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.values = self._json("golden.json")
        self.salt, self.files = self.value("salt"), self.value("files")
        check = self.value("rule_check")
        name, wanted = (self.value(k, check) for k in ("name", "first_5_draws"))
        got = self.draw(name, len(wanted))
        if not np.allclose(got, wanted, rtol=1e-6, atol=1e-7):
            raise UserError(
                f"rule_check of {folder / 'golden.json'} fails: {name} draws "
                f"{got.tolist()} here and {wanted} there; its weights cannot be made"
            )

    def value(self, key: str, section: dict[str, Any] | None = None) -> Any:
        """A value of golden.json, or of a section of it.

        Raises:
            UserError: where there is none.
        """
        section = self.values if section is None else section
        if key not in section:
            raise UserError(f"{self.folder / 'golden.json'} has no {key!r}")
        return section[key]

    def _json(self, name: str) -> Any:
        path = self.folder / name
        try:
            return json.loads(path.read_text())
        except FileNotFoundError as error:
            raise UserError(
                f"{path} is not there; wanted --golden=DIR, a folder of golden numbers "
                "with its golden.json and manifests"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error

    def draw(self, name: str, *shape: int) -> np.ndarray:
        """A standard normal draw."""
        seed = zlib.crc32(f"{self.salt}/{name}".encode())
        rng = np.random.Generator(np.random.PCG64(seed))
        return rng.standard_normal(shape, dtype=np.float32)

    def uniform(self, name: str, *shape: int) -> np.ndarray:
        """A draw in (0, 1)."""
        return 1 / (1 + np.exp(-self.draw(name, *shape)))

    def weight(self, name: str, shape: Shape) -> np.ndarray:
        """A weight of the release."""
        values = self.draw(name, *shape)
        if name.endswith("running_var"):
            return 1 + np.float32(0.1) * np.abs(values)
        if len(shape) >= 2:
            return values / np.float32(math.sqrt(math.prod(shape[1:])))
        if name.endswith((".weight", ".g")):
            return 1 + np.float32(0.1) * values
        return np.asarray(np.float32(0.1) * values)  # of one value too

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of NAME.npz.

        Raises:
            UserError: where the file is absent or damaged.
        """
        path = self.folder / f"{name}.npz"
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return dict(arrays)
        except FileNotFoundError as error:
            raise UserError(f"{path} is listed in golden.json and absent") from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} is damaged: {error}") from error

    def state(self, model: str) -> dict[str, Drawn]:
        """The state dict of a model."""
        state = {}
        for name, shape in self._json(f"{model}.manifest.json").items():
            shape = tuple(shape)

            def make(name=name, shape=shape):
                fixed = self._fixed(name, shape)
                return self.weight(name, shape) if fixed is None else fixed

            state[name] = Drawn(shape, make)
        return state

    def _fixed(self, name: str, shape: Shape) -> np.ndarray | None:
        """A value that the release starts from and the rule does not draw."""
        if name in rules.TABLES["t2i"]:
            return sincos_positions(*shape[1:])[None]
        if name in rules.TABLES["tokenizer"]:
            cos, sin = rope_tables(math.isqrt(shape[0]), shape[1])
            return cos if name.endswith("cos") else sin
        if name.endswith(".num_batches_tracked"):
            return np.zeros(shape, np.int64)
        for tables in critics.TABLES.values():
            if name in tables:
                return tables[name]
        default = rules.DEFAULTS["t2i"].get(name)
        return None if default is None else np.asarray(default, np.float32)

    def is_tokenizer(self, model: str) -> bool:
        """Whether a model is an image tokenizer, not a flow."""
        return "image_size" in self.value(model)

    def sizes(self, model: str) -> dict[str, Any]:
        """Config sections of a model: shapes by its manifest, heads by golden.json.

        Raises:
            UserError: where one of them is incomplete, or they disagree.
        """
        is_tokenizer = self.is_tokenizer(model)
        group = "tokenizer" if is_tokenizer else "t2i"
        shapes = {name: drawn.shape for name, drawn in self.state(model).items()}
        told = (self._told_tokenizer if is_tokenizer else self._told_flow)(model)
        heads = {k: v["heads"] for k, v in told.items() if "heads" in v}
        try:
            sizes = read_sizes(group, shapes, heads)
        except UserError as error:
            path = self.folder / f"{model}.manifest.json"
            raise UserError(f"{path}: {error}") from error
        for section, values in told.items():
            for key, value in values.items():
                if sizes[section][key] != value:
                    raise UserError(
                        f"{self.folder / 'golden.json'} says {section}.{key} of "
                        f"{model} is {value}, its manifest {sizes[section][key]}"
                    )
        return sizes

    def _told_tokenizer(self, model: str) -> dict[str, Any]:
        names = {key: key for key in ("image_size", "encoder", "decoder")}
        return {"tokenizer": self._told(model, names | {"patch": "patch_size"})}

    def _told_flow(self, model: str) -> dict[str, Any]:
        names = {key: key for key in ("width", "depth", "heads")}
        blocks = {"depth": "blocks", "heads": "heads", "mlp_width": "mlp_width"}
        projector = self.values[model].get("projector") or self.value("projector_full")
        return {
            "dit": self._told(model, names),
            "projector": self._told(f"the projector of {model}", blocks, projector),
        }

    def _told(
        self, model: str, names: dict[str, str], section: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Values of golden.json by our names for them."""
        section = self.values[model] if section is None else section
        try:
            return {ours: section[name] for ours, name in names.items()}
        except KeyError as error:
            raise UserError(
                f"{self.folder / 'golden.json'}: {model} has no {error}"
            ) from error
