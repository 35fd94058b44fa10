"""What samples are compared with: statistics of real images, as an npz file.

    mu, sigma        mean and covariance, as in the files of pytorch-fid and clean-fid
    n                how many images
    resize, net      how they came to 299 px; SHA-256 of Inception's weights
    features         one row an image; KID, precision and recall need them
    mu/G, sigma/G, n/G   of the images of group G

Files of others have `mu` and `sigma` only.
"""

import hashlib
import io
import logging
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from flowtok_jax.eval.features import Extractor, Pixels
from flowtok_jax.eval.fid import frechet_distance
from flowtok_jax.eval.statistics import Moments
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, write_bytes

BLOCK = 2048  # images between two updates of the moments
COMMAND = "python -m flowtok_jax.eval.reference --images=DIR --out=FILE.npz"


class Gaussian(NamedTuple):
    """Mean and covariance of features; of how many images, where that is known."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    @classmethod
    def of(cls, moments: Moments) -> "Gaussian":
        """Of rows, of which there are 2 at least."""
        return cls(moments.mean, moments.covariance, moments.count)

    def distance(self, other: "Gaussian") -> float:
        """The Frechet distance."""
        return frechet_distance(
            self.mean, self.covariance, other.mean, other.covariance
        )


class Reference(NamedTuple):
    """Statistics of images; None where a file does not tell."""

    whole: Gaussian
    groups: Mapping[str, Gaussian] = {}
    features: np.ndarray | None = None
    resize: str | None = None
    net: str | None = None

    def digest(self) -> str:
        """SHA-256 of all the numbers that samples are compared with."""
        found = hashlib.sha256()
        for name, part in [("", self.whole), *sorted(self.groups.items())]:
            found.update(name.encode())
            for values in (part.mean, part.covariance):
                found.update(np.ascontiguousarray(values, np.float64).tobytes())
        if self.features is not None:
            found.update(np.ascontiguousarray(self.features, np.float32).tobytes())
        return found.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What to say beside a number."""
        unknown = "unknown"
        return {
            "sha256": self.digest(),
            "images": unknown if self.whole.count is None else self.whole.count,
            "resize": self.resize or unknown,
            "net": self.net or unknown,
        }


def make_reference(
    extract: Extractor,
    count: int,
    load: Callable[[int], Pixels | None],
    *,
    keeps_features: bool,
    group_of: Callable[[int], str] | None = None,
) -> Reference:
    """Statistics of `count` images; all processes have to call it together.

    Args:
        load: image i, or None where it is broken.
        group_of: the group of image i; "" for none.

    Raises:
        UserError: where fewer than 2 images are left.
    """
    whole, groups, features = Moments(), {}, []
    for start in range(0, count, BLOCK):
        found = extract(min(BLOCK, count - start), lambda i, s=start: load(s + i))
        whole = whole.add(found.pool)
        if keeps_features:
            features.append(found.pool)
        names = np.array([group_of(start + i) if group_of else "" for i in found.rows])
        for name in sorted(set(names.tolist()) - {""}):
            part = found.pool[names == name]
            groups[name] = groups.get(name, Moments()).add(part)
        if start + BLOCK < count:
            logging.info("reference: %d of %d images", start + BLOCK, count)
    few = {name: x.count for name, x in {"": whole, **groups}.items() if x.count < 2}
    if few:
        name, left = next(iter(few.items()))
        raise UserError(
            f"{left} images that can be read{f' in group {name}' if name else ''}; "
            "statistics need 2 at least, and a few thousand to mean something"
        )
    return Reference(
        Gaussian.of(whole),
        {name: Gaussian.of(part) for name, part in sorted(groups.items())},
        np.concatenate(features) if keeps_features else None,
        extract.resize,
        extract.net_sha256,
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


def _numbers(
    place: Place, arrays: Mapping[str, np.ndarray], name: str, *shape: int | None
) -> np.ndarray:
    """An array of a file, all finite; None in its shape is any length."""
    if name not in arrays:
        raise UserError(f"reference {place} has no {name}; make it by `{COMMAND}`")
    found = arrays[name]
    fits = found.ndim == len(shape) and all(
        n in (None, m) for n, m in zip(shape, found.shape, strict=True)
    )
    if not fits or found.dtype.kind not in "fiu":
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise UserError(
            f"reference {place}: {name} is {found.dtype} of shape {found.shape}; "
            f"wanted numbers of shape ({wanted}); make it by `{COMMAND}`"
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


def read_reference(place: Place) -> Reference:
    """The statistics of a file: ours, or of pytorch-fid and clean-fid.

    Raises:
        UserError: where it is not there, damaged or something else.
    """
    if not place.is_file():
        raise UserError(f"reference {place} is not there; make it by `{COMMAND}`")
    try:
        data = io.BytesIO(place.read_bytes())
        if not zipfile.is_zipfile(data):
            raise zipfile.BadZipFile("File is not a zip file")
        with np.load(data, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(
            f"reference {place} is no npz file that can be read ({error}); make it by "
            f"`{COMMAND}`"
        ) from error
    if not {"mu", "sigma"} <= set(arrays):
        raise UserError(
            f"reference {place} holds {', '.join(arrays) or 'nothing'}; wanted mu and "
            f"sigma, as `{COMMAND}`, pytorch-fid and clean-fid write them"
        )
    ends = [name.removeprefix("mu") for name in arrays if name.startswith("mu/")]
    texts = {name: str(arrays[name]) for name in ("resize", "net") if name in arrays}
    whole, features = _gaussian(place, arrays, ""), None
    if "features" in arrays:
        features = _numbers(place, arrays, "features", None, len(whole.mean))
    groups = {end[1:]: _gaussian(place, arrays, end) for end in ends}
    return Reference(whole, groups, features, **texts)


def check_fits(reference: Reference, name: str, extract: Extractor) -> None:
    """Refuses statistics that our features cannot be compared with.

    Args:
        name: of the file, for messages.

    Raises:
        UserError: where dimensions, resizing or network differ.
    """
    there = len(reference.whole.mean)
    if there != extract.width:
        raise UserError(
            f"reference {name} has {there} dimensions, Inception's features here "
            f"{extract.width}; make it by `{COMMAND}`"
        )
    if reference.resize not in (None, extract.resize):
        raise UserError(
            f"reference {name} is of {reference.resize} resizing, eval.fid.resize is "
            f"{extract.resize}; make one of them the other"
        )
    if (reference.net or "another") != extract.net_sha256 and (
        reference.net is not None or extract.net_sha256 == "random"
    ):
        raise UserError(
            f"reference {name} is of other weights of Inception "
            f"({(reference.net or 'unknown')[:12]} there, {extract.net_sha256[:12]} "
            f"here); make it by `{COMMAND} --weights=DIR` with the weights of "
            "eval.weights"
        )
