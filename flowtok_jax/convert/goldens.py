"""Folder of golden numbers, and the comparison of our numbers with them.

    draw(name, shape)    a normal draw, seeded by the folder's salt and the name  (1)
    weight(name, shape)  running_var: 1 + |draw| / 10                             (2)
                         *.layer_scale: draw / 10                                 (5)
                         matrices: draw / sqrt(fan in)                            (3)
                         *.weight, *.g: 1 + draw / 10                             (4)
                         others: draw / 10                                        (5)

Fixed tables and the logit scale are not drawn: they are as the release starts them.
Weights that follow this rule need no file, however large the model (the folder's
README).
"""

import json
import math
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowtok_jax.convert import critics, rules
from flowtok_jax.convert.groups import read_sizes
from flowtok_jax.convert.state_dicts import naming
from flowtok_jax.models.layers import rope_tables, sincos_positions
from flowtok_jax.runtime.cli import say
from flowtok_jax.runtime.errors import UserError, reason_of
from flowtok_jax.weights.safetensors import Shape


class AbsentError(UserError):
    """A file of the folder that does not exist, so that nothing can be compared."""


class Drawn(NamedTuple):
    """Array that is computed when it is converted to numpy."""

    shape: Shape
    make: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        # Drawn anew each time, so that a state dict of XL's size is never whole in
        # memory.
        return np.asarray(self.make(), dtype)


class Goldens:
    """Folder of golden numbers, with its arrays, sizes and weights.

    Raises:
        UserError: if the folder has no golden.json, or its weights follow another rule.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.values = self._json("golden.json")
        self.salt = self.value("salt")
        self.files = self.value("files")
        # Random generators may change between versions of numpy: a few stored draws
        # tell.
        check = self.value("rule_check")
        name, expected = (self.value(k, check) for k in ("name", "first_5_draws"))
        got = self.draw(name, len(expected))
        if not np.allclose(got, expected, rtol=1e-6, atol=1e-7):
            raise UserError(
                f"rule_check of {folder / 'golden.json'} fails: {name} draws "
                f"{got.tolist()} here and {expected} there; its weights cannot be made"
            )

    def value(self, key: str, section: dict[str, Any] | None = None) -> Any:
        """Returns a value of golden.json, or of a section of it.

        Raises:
            UserError: if the key does not exist.
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
            raise AbsentError(
                f"{path} does not exist; expected --golden=DIR, a folder of golden "
                "numbers with its golden.json and manifests"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({reason_of(error)})") from error

    def draw(self, name: str, *shape: int) -> np.ndarray:
        """Draws from the standard normal distribution, by (1)."""
        # CRC-32 rather than hash(), which differs from process to process.
        seed = zlib.crc32(f"{self.salt}/{name}".encode())
        rng = np.random.Generator(np.random.PCG64(seed))
        return rng.standard_normal(shape, dtype=np.float32)

    def uniform(self, name: str, *shape: int) -> np.ndarray:
        """Draws values in (0, 1): the sigmoid of normal ones."""
        return 1 / (1 + np.exp(-self.draw(name, *shape)))

    def weight(self, name: str, shape: Shape) -> np.ndarray:
        """Draws a weight of the release."""
        values = self.draw(name, *shape)
        if name.endswith("running_var"):
            return 1 + np.float32(0.1) * np.abs(values)  # (2)
        if name.endswith("layer_scale"):
            return np.float32(0.1) * values  # (5), of three dimensions
        if len(shape) >= 2:
            return values / np.float32(math.sqrt(math.prod(shape[1:])))  # (3)
        if name.endswith((".weight", ".g")):
            return 1 + np.float32(0.1) * values  # (4)
        return np.asarray(np.float32(0.1) * values)  # (5); numpy makes [] a scalar

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Reads the arrays of NAME.npz, or the columns of NAME.json.

        Raises:
            AbsentError: if the file does not exist.
        UserError: if it is damaged.
        """
        if f"{name}.json" in self.files:
            rows = self.value("rows", self._json(f"{name}.json"))
            # As objects: numpy's own texts lose NULs at their end.
            texts = {"caption": object}
            columns = {key: [row[key] for row in rows] for key in rows[0]}
            return {k: np.array(x, texts.get(k)) for k, x in columns.items()}
        path = self.folder / f"{name}.npz"
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return dict(arrays)
        except FileNotFoundError as error:
            raise AbsentError(f"{path} is listed in golden.json, and absent") from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} is damaged: {error}") from error

    def state(self, model: str) -> dict[str, Drawn]:
        """Returns the state dict of a model; its arrays are drawn when used."""
        state = {}
        shapes = self._json(f"{model}.manifest.json")
        for name, shape in (self._rope_shapes(model) | shapes).items():
            shape = tuple(shape)

            def make(name=name, shape=shape):  # defaults bind this pass's values
                fixed = self._fixed(name, shape)
                return self.weight(name, shape) if fixed is None else fixed

            state[name] = Drawn(shape, make)
        return state

    def _rope_shapes(self, model: str) -> dict[str, Shape]:
        """Returns the shapes of a tokenizer's fixed tables, which it may leave out."""
        if model not in self.values or not self.is_tokenizer(model):
            return {}
        told = self.values[model]
        places = (told["image_size"] // told["patch_size"]) ** 2
        return {
            name: (places, told[side]["width"] // told[side]["heads"])
            for name in rules.TABLES["tokenizer"]
            for side in (name.split(".")[0],)
        }

    def _fixed(self, name: str, shape: Shape) -> np.ndarray | None:
        """Returns the value of an array that the rule does not draw, else None."""
        if name in rules.TABLES["t2i"]:
            return sincos_positions(*shape[1:])[None]  # [1 n d]
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
        """Returns whether a model is an image tokenizer, and not a flow."""
        # Only tokenizers state an image size in golden.json.
        return "image_size" in self.value(model)

    def sizes(self, model: str) -> dict[str, Any]:
        """Reads the config sections of a model.

        The manifest's shapes tell the sizes, golden.json tells the heads.

        Raises:
            UserError: if one of the two is incomplete, or they disagree.
        """
        is_tokenizer = self.is_tokenizer(model)
        group = "tokenizer" if is_tokenizer else "t2i"
        shapes = {name: drawn.shape for name, drawn in self.state(model).items()}
        told = (self._told_tokenizer if is_tokenizer else self._told_flow)(model)
        heads = {k: v["heads"] for k, v in told.items() if "heads" in v}
        with naming(self.folder / f"{model}.manifest.json"):
            sizes = read_sizes(group, shapes, heads)
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
        """Returns values of golden.json under our names for them."""
        section = self.values[model] if section is None else section
        try:
            return {ours: section[name] for ours, name in names.items()}
        except KeyError as error:
            raise UserError(
                f"{self.folder / 'golden.json'}: {model} has no {error}"
            ) from error


class CheckResult(NamedTuple):
    """Outcome of one tensor's comparison, a line of the report."""

    name: str
    verdict: str  # ok or FAIL
    max_abs: float
    measure: str  # rel_l2, or rel_max: the largest error relative to its own value
    relative: float
    tolerance: float


class ParityReport:
    """Record of all comparisons, each printed as it is made."""

    def __init__(self):
        self.results: list[CheckResult] = []
        self.faults: dict[str, str] = {}  # name -> why it could not be compared
        self.absent: list[str] = []  # names of files that do not exist

    def add(self, result: CheckResult) -> None:
        """Prints and keeps the outcome of a comparison."""
        self.results.append(result)
        say(
            f"{result.verdict:7} {result.name:56} max_abs {result.max_abs:9.2e}  "
            f"{result.measure} {result.relative:9.2e}  allowed {result.tolerance:.0e}"
        )

    def fault(self, name: str, why: str) -> None:
        """Prints and keeps the reason why a tensor could not be compared."""
        self.faults[name] = why
        say(f"{'FAIL':7} {name:56} {why}")

    def lack(self, name: str, why: str) -> None:
        """Prints and keeps the name of a golden file that does not exist."""
        self.absent.append(name)
        say(f"{'absent':7} {name:56} {why}")

    @property
    def failed(self) -> list[str]:
        """Names of tensors over their tolerance, or that could not be compared."""
        bad = [r.name for r in self.results if r.verdict != "ok"]
        return bad + list(self.faults)


class Check:
    """Comparison with one golden file: gives its inputs, takes our outputs."""

    def __init__(self, goldens: Goldens, name: str, report: ParityReport):
        self.goldens = goldens
        self.name = name
        self.report = report
        self.arrays = goldens.arrays(name)
        self._left = set(self.arrays)  # neither read nor compared so far

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def values(self, key: str) -> np.ndarray:
        """Returns a stored input as it is stored."""
        if key not in self.arrays:
            raise UserError(f"{self.name} has no {key!r}, which is an input")
        self._left.discard(key)
        return self.arrays[key]

    def input(self, key: str) -> jax.Array:
        """Returns a stored input."""
        return jnp.asarray(self.values(key))

    def compare(
        self,
        key: str,
        got: Any,
        tolerance: float,
        *,
        each: bool = False,
        floor: float = 0.0,
        note: str = "",
        rows: slice = slice(None),  # noqa: B008 (immutable)
    ) -> None:
        """Reports the error of an output.

        Args:
            each: measures the largest relative error of a value, for vectors of scalars
                of different size, instead of the relative L2 error.
            floor: the least magnitude that an error of a value is relative to.
            note: follows the output's name in the report.
            rows: the part of the stored output that is compared.
        """
        name = f"{self.name}/{key}{note}"
        if key not in self.arrays:
            self.report.fault(name, f"missing in {self.name}.npz")
            return
        self._left.discard(key)
        # float64, so that the error's own arithmetic adds none.
        expected = self.arrays[key]
        expected = expected[rows] if expected.ndim else expected
        got, expected = (np.asarray(x, np.float64) for x in (got, expected))
        if got.shape != expected.shape:
            self.report.fault(name, f"is {expected.shape} there and {got.shape} here")
            return
        error = np.abs(got - expected)
        if each:
            measure = "rel_max"
            # Where the release has 0, so must we.
            least = np.where(expected == 0, np.finfo(np.float64).tiny, floor)
            scale = np.maximum(abs(expected), least)
            relative = float(np.max(error / scale, initial=0.0))
        else:
            measure = "rel_l2"
            # As above, where all of it is 0.
            scale = np.linalg.norm(expected) or np.finfo(np.float64).tiny
            relative = float(np.linalg.norm(error) / scale)
        verdict = "ok" if relative <= tolerance else "FAIL"  # FAIL for nan, too
        worst = float(error.max())
        self.report.add(CheckResult(name, verdict, worst, measure, relative, tolerance))

    def finish(self) -> None:
        """Reports the arrays of the file that were neither read nor compared."""
        for key in sorted(self._left):
            self.report.fault(f"{self.name}/{key}", "is not known here")
