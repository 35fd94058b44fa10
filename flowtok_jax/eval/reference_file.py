"""Files of reference statistics: ours, and those of other programs.

    .npz   mu and sigma, as pytorch-fid, clean-fid, EDM and guided-diffusion write them
           (whatever else the file holds is not read); mean and cov instead; or features
           alone, feats in clean-fid's files for KID
    .npy   features [n, d]; or a dictionary of mu and sigma, as NVAE and DDGAN save it

Such a dictionary is a pickle, which could run a program: only arrays are taken from it.
"""

import io
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowtok_jax.eval.features import Extractor
from flowtok_jax.eval.fid import Gaussian, Moments, Reference
from flowtok_jax.runtime.errors import StoreError, UserError
from flowtok_jax.runtime.files import Place, read_bytes, write_bytes

COMMAND = "python -m flowtok_jax.eval.reference --images=DIR --out=FILE.npz"
CURE = f"make it by `{COMMAND}`"
# Names of other programs -> ours.
ALIASES = {"mean": "mu", "cov": "sigma", "feats": "features"}
NAMES = ("mu", "sigma", "n", "features", "resize", "net")
# What a pickle of arrays calls; numpy 2 moved the first two from numpy.core.
ARRAY_PARTS = (
    "multiarray._reconstruct",
    "multiarray.scalar",
    "numeric._frombuffer",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
)


def write_reference(place: Place, reference: Reference) -> None:
    """Writes the file, whole or not at all."""
    arrays: dict[str, Any] = {"resize": reference.resize, "net": reference.net}
    for name, part in [("", reference.whole), *reference.groups.items()]:
        end = f"/{name}" if name else ""
        arrays |= {f"mu{end}": part.mean, f"sigma{end}": part.covariance}
        arrays[f"n{end}"] = part.count
    if reference.features is not None:
        arrays["features"] = reference.features
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(place, buffer.getvalue())


def read_reference(place: Place) -> Reference:
    """Reads the statistics of a file: ours, or of another program.

    Raises:
        UserError: if the file does not exist, is damaged or something else.
    """
    arrays = _read_arrays(place)
    # "mu/G" names a group; what follows `mu` is the same for all its arrays.
    ends = [name.removeprefix("mu") for name in arrays if name.startswith("mu/")]
    texts = {name: str(arrays[name]) for name in ("resize", "net") if name in arrays}
    features = None
    if "mu" in arrays:
        whole = _gaussian(place, arrays, "")
        if "features" in arrays:
            features = _numbers(place, arrays, "features", None, len(whole.mean))
    else:
        features = _numbers(place, arrays, "features", None, None)
        if len(features) < 2:
            raise UserError(
                f"reference {place} has features of {len(features)} images; expected "
                f"at least 2; {CURE}"
            )
        whole = Gaussian.of(Moments.of(features))
    groups = {end[1:]: _gaussian(place, arrays, end) for end in ends}
    return Reference(whole, groups, features, **texts)


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler of arrays, numbers, texts, lists and dictionaries only."""

    def find_class(self, module: str, name: str) -> Any:
        part = f"{module}.{name}".removeprefix("numpy.core.")
        if part.removeprefix("numpy._core.") not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return super().find_class(module, name)


def _read_arrays(place: Place) -> dict[str, np.ndarray]:
    """Reads those arrays of a file that have to do with statistics."""
    try:
        data = io.BytesIO(read_bytes(place))
        if data.getvalue().startswith(np.lib.format.MAGIC_PREFIX):
            return _read_npy(place, data)
        # np.load takes a bare pickle as well, and does not name it.
        if not zipfile.is_zipfile(data):
            raise zipfile.BadZipFile("File is not a zip file")
        with np.load(data, allow_pickle=False) as file:
            return _choose(place, file)
    except (StoreError, UserError):  # ValueErrors too, and no fault of the file
        raise
    except FileNotFoundError as error:
        raise UserError(f"reference {place} does not exist; {CURE}") from error
    except IsADirectoryError as error:
        raise UserError(
            f"reference {place} is a folder; expected a file of its statistics: {CURE}"
        ) from error
    # Readers raise anything of a damaged file; its header may claim terabytes.
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"reference {place} is no npz or npy file that can be read ({said}); {CURE}"
        ) from error


def _choose(place: Place, file: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Chooses arrays by name; samples that lie beside them are not even read."""
    found = {ours: theirs for theirs, ours in ALIASES.items() if theirs in file}
    found |= {name: name for name in file if name.split("/")[0] in NAMES}
    if {"mu", "sigma"} <= set(found) or set(found) == {"features"}:
        return {ours: np.asarray(file[name]) for ours, name in found.items()}
    held = ", ".join(file) or "nothing"
    hint = ""
    if any(name.endswith("/data.pkl") for name in file):
        hint = "; it is a file of PyTorch's: np.savez can write its arrays"
    raise UserError(
        f"reference {place} holds {held[:200]}; expected mu and sigma, as `{COMMAND}`, "
        f"pytorch-fid and clean-fid write them{hint}"
    )


def _read_npy(place: Place, data: io.BytesIO) -> dict[str, np.ndarray]:
    major, _ = np.lib.format.read_magic(data)
    read_header = getattr(np.lib.format, f"read_array_header_{major}_0")
    shape, _, dtype = read_header(data)
    if dtype.hasobject:
        try:
            held = _ArrayUnpickler(data).load()
        except Exception as error:  # a damaged pickle raises anything
            raise ValueError(f"its pickle cannot be read: {error}") from error
        held = held.item() if isinstance(held, np.ndarray) and not held.ndim else held
        if isinstance(held, dict) and all(isinstance(name, str) for name in held):
            return _choose(place, held)
        raise UserError(
            f"reference {place} holds a {type(held).__name__}; expected a dictionary "
            f"of mu and sigma; {CURE}"
        )
    if len(shape) == 2 and shape[0] == shape[1]:
        raise UserError(
            f"reference {place} is an array {list(shape)}: features of {shape[0]} "
            "images, or a covariance without its mean; expected an npz file with mu "
            "and sigma, or with features"
        )
    if len(shape) != 2:
        raise UserError(
            f"reference {place} is an array {list(shape)}; expected features [n, d]: "
            f"save images as files, and {CURE}"
        )
    data.seek(0)
    return {"features": np.load(data, allow_pickle=False)}


def _numbers(
    place: Place, arrays: Mapping[str, np.ndarray], name: str, *shape: int | None
) -> np.ndarray:
    """Returns an array of a file, all finite; None in its shape is any length."""
    if name not in arrays:
        raise UserError(f"reference {place} has no {name}; {CURE}")
    found = arrays[name]
    fits = found.ndim == len(shape) and all(
        n in (None, m) for n, m in zip(shape, found.shape, strict=True)
    )
    if not fits or found.dtype.kind not in "fiu":
        expected = ", ".join("any" if n is None else str(n) for n in shape)
        raise UserError(
            f"reference {place}: {name} is {found.dtype} of shape {found.shape}; "
            f"expected numbers of shape ({expected}); {CURE}"
        )
    if not np.isfinite(found).all():
        raise UserError(f"reference {place}: {name} is not finite; make it again")
    return found


def _gaussian(place: Place, arrays: Mapping[str, np.ndarray], end: str) -> Gaussian:
    mean = _numbers(place, arrays, f"mu{end}", None)
    covariance = _numbers(place, arrays, f"sigma{end}", len(mean), len(mean))
    count = f"n{end}"
    if count not in arrays:
        return Gaussian(mean, covariance)
    return Gaussian(mean, covariance, int(_numbers(place, arrays, count)))


def check_fits(reference: Reference, name: str, extract: Extractor) -> None:
    """Refuses statistics that our features cannot be compared with.

    Args:
        name: of the file, for messages.

    Raises:
        UserError: if dimensions, resizing or network differ.
    """
    there = len(reference.whole.mean)
    if there != extract.width:
        raise UserError(
            f"reference {name} has {there} dimensions, Inception's features here "
            f"{extract.width}; {CURE}"
        )
    if reference.resize not in (None, extract.resize):
        raise UserError(
            f"reference {name} is of {reference.resize} resizing, eval.fid.resize is "
            f"{extract.resize}; make one of them the other"
        )
    # A file of others does not name its network, and is taken for the published one.
    if (reference.net or "another") != extract.net_sha256 and (
        reference.net is not None or extract.net_sha256 == "random"
    ):
        raise UserError(
            f"reference {name} is of other weights of Inception "
            f"({(reference.net or 'unknown')[:12]} there, {extract.net_sha256[:12]} "
            f"here); make it by `{COMMAND} --weights=DIR` with the weights of "
            "eval.weights"
        )
