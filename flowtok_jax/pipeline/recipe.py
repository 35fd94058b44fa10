"""Recipes of drawn pictures: a text chunk of a PNG file that says how to draw it again.

The chunk is a tEXt of the keyword `flowtok_jax`: one JSON object in ASCII, of `version`
and the fields of `Recipe`. docs/editing.md says what each of them means.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

import flowtok_jax
from flowtok_jax.array_types import Params
from flowtok_jax.data.inputs import Picture, check_prompts, to_uint8
from flowtok_jax.data.png import read_text
from flowtok_jax.data.records import printable
from flowtok_jax.models.build import Nets, find_providers
from flowtok_jax.runtime.batches import RowPrograms
from flowtok_jax.runtime.config import check_seed
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.errors import UserError, reason_of
from flowtok_jax.runtime.files import read_bytes, text_chunks, to_place
from flowtok_jax.sampling import DIRECTIONS, Programs, SampleOptions, flow_group

KEYWORD = "flowtok_jax"
VERSION = 1
MOST_BYTES = 1 << 20  # of a chunk; Pillow's own limit for a text
MOST_ROWS = 1 << 16  # a broken chunk should not fill the memory
OPTIONS = ("num_steps", "scale", "source", "solver", "times")


class Recipe(NamedTuple):
    """Everything that a picture depends on.

    Attributes:
        row: number of the prompt, which with the seed decides its noise.
        slot: place in the batch that it was drawn in.
        rows: rows of that batch's program, which may round otherwise than others.
        options: those of OPTIONS.
        weights: SHA-256 of the parameters of each group that was used.
        place: where the weights lay.
        package, jax: versions.
        device: platform that it was drawn on.
        pixels: SHA-256 of the picture.
    """

    prompt: str
    seed: int
    row: int
    slot: int
    rows: int
    options: dict[str, Any]
    dtype: str
    weights: dict[str, str]
    place: str
    package: str
    jax: str
    device: str
    pixels: str

    @property
    def sample(self) -> SampleOptions:
        """Options that draw the picture in a program of as many rows."""
        return SampleOptions(**self.options, batch_size=self.rows)

    @property
    def machinery(self) -> str:
        """Versions and platform, on one line."""
        return f"{KEYWORD} {self.package}, jax {self.jax} on {self.device}"

    def to_text(self) -> str:
        """Returns the text of the chunk."""
        return json.dumps({"version": VERSION, **self._asdict()})


def pixels_sha256(pixels: np.ndarray) -> str:
    """Digests the shape and the bytes of an image of uint8."""
    whole = np.ascontiguousarray(pixels)
    return hashlib.sha256(repr(whole.shape).encode() + whole.tobytes()).hexdigest()


def parse_recipe(text: str) -> Recipe:
    """Parses the text of a chunk.

    Raises:
        ValueError: saying what is wrong with it.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    # First of all: another version may have other keys.
    version = found.pop("version", None)
    if version != VERSION:
        raise ValueError(f"its version is {str(version)[:20]}, expected {VERSION}")
    if found.keys() != set(Recipe._fields):
        differing = sorted(found.keys() ^ set(Recipe._fields))
        raise ValueError(f"it lacks, or should lack, {', '.join(differing)[:200]}")
    recipe = Recipe(**found)
    _check_types(recipe)
    # The seed of a batch that begins before row 0 does not exist.
    if not 0 <= recipe.slot < recipe.rows <= MOST_ROWS or recipe.slot > recipe.row:
        raise ValueError("its row, slot and rows do not fit together")
    check_seed("its seed", recipe.seed)
    check_seed("its row", recipe.row)
    recipe.sample.check()
    return recipe


def _check_types(recipe: Recipe) -> None:
    for name, kind in Recipe.__annotations__.items():
        value = getattr(recipe, name)
        expected = getattr(kind, "__origin__", kind)
        if type(value) is not expected:  # True is no number here
            raise ValueError(f"its {name} is no {expected.__name__}")
    if recipe.options.keys() != set(OPTIONS):
        raise ValueError(f"its options are not {', '.join(OPTIONS)}")
    if not all(isinstance(digest, str) for digest in recipe.weights.values()):
        raise ValueError("its weights are no digests")
    if type(recipe.options["scale"]) not in (int, float):
        raise ValueError("its scale is no number")
    for name in ("source", "solver", "times"):
        if type(recipe.options[name]) is not str:
            raise ValueError(f"its {name} is no text")


class DrawnImage(Image.Image):
    """An image of Pillow whose recipe goes along when it is saved as PNG."""

    @classmethod
    def from_pixels(cls, pixels: np.ndarray, recipe: Recipe) -> "DrawnImage":
        """Makes an image of uint8 pixels [h, w, 3]."""
        made = cls()
        # Pillow's own way to make one image of another, as for pickle.
        made.__setstate__(Image.fromarray(pixels).__getstate__())
        made.info[KEYWORD] = recipe.to_text()
        return made

    @property
    def text(self) -> dict[str, str]:
        """Text chunks for a PNG file: none once the pixels were changed."""
        text = self.info.get(KEYWORD, "")
        fits = 0 < len(text) <= MOST_BYTES
        # Pillow changes pixels in place: the recipe would be another picture's.
        if fits and json.loads(text)["pixels"] == pixels_sha256(np.asarray(self)):
            return {KEYWORD: text}
        return {}

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Saves the image as Pillow does, a PNG with the recipe.

        Args:
            params: of Pillow; `pnginfo` is used in place of the recipe.
        """
        super().save(fp, format, **{"pnginfo": text_chunks(self.text), **params})


def read_recipe(picture: str | os.PathLike | Image.Image) -> Recipe:
    """Reads the recipe of a PNG file, or of an image of Pillow that came from one.

    Raises:
        UserError: where there is none, or it is broken.
    """
    if isinstance(picture, Image.Image):
        name = "the image"
        text = picture.info.get(KEYWORD)
    else:
        name = printable(str(picture))
        try:
            text = read_text(read_bytes(to_place(picture)), KEYWORD, MOST_BYTES)
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{name} cannot be read ({reason_of(error)}); expected a PNG file"
            ) from error
    if text is None:
        raise UserError(
            f"{name} does not say how it was drawn; expected a PNG as `draw` and "
            "--mode=sample save it, that no other program saved again"
        )
    try:
        return parse_recipe(text)
    except ValueError as error:
        raise UserError(
            f"{name} says how it was drawn in a broken text ({reason_of(error)}); "
            "expected the chunk that flowtok_jax wrote"
        ) from error


def check_same(recipe: Recipe, here: Mapping[str, Any]) -> None:
    """Refuses a picture of other weights, or of another dtype.

    Args:
        here: the fields of a recipe as these weights would have them.

    Raises:
        UserError: naming what differs.
    """
    weights = here["weights"]
    differing = [g for g, digest in weights.items() if recipe.weights.get(g) != digest]
    if differing:
        raise UserError(
            f"the picture was drawn by other weights, of {', '.join(differing)} in "
            f"{here['place'] or 'this object'}; expected those that lay in "
            f"{printable(recipe.place) or 'no directory'}"
        )
    if recipe.dtype != here["dtype"]:
        raise UserError(
            f"the picture was drawn in {printable(recipe.dtype)}, these networks "
            f"compute in {here['dtype']}; expected "
            f"--config.compute.dtype={printable(recipe.dtype)}"
        )


class Recording:
    """The part of `FlowTok` that draws pictures which say how to draw them again."""

    # Of FlowTok, which this is a part of.
    nets: Nets
    params: Params
    sample: SampleOptions
    place: str
    text_to_image: Callable[..., np.ndarray]
    _digests: dict[str, str]
    changed: Callable[..., SampleOptions]
    _programs: Programs
    _compiled: RowPrograms
    _need: Callable[[str, str], None]
    _ids: Callable[[object], np.ndarray]
    _in_batches: Callable[..., Any]

    def draw(
        self,
        prompts: Iterable[str],
        seed: int = 0,
        first_row: int = 0,
        num_images: int = 1,
        **options,
    ) -> list[DrawnImage]:
        """Draws prompts as images of Pillow, which have `.save(PATH)`.

        Saved as PNG they are the files that `--mode=sample` writes, and say how to draw
        them again; the arguments are those of `text_to_image`.
        """
        call = (check_prompts(prompts), seed, first_row, num_images)
        images = self.text_to_image(*call, **options)
        return self.with_recipes(images, *call, **options)

    def with_recipes(
        self,
        images: Float[np.ndarray, "b s s 3"],
        texts: Sequence[str],
        seed: int = 0,
        first_row: int = 0,
        num_images: int = 1,
        **options,
    ) -> list[DrawnImage]:
        """Returns images that `text_to_image` drew, with recipes; see `draw`.

        Args:
            texts: the prompts, as they were given; so are the other arguments.
        """
        chosen = self.changed(self.sample, options)
        size = self._compiled.rows_of(len(texts), chosen.batch_size)
        about = self._about(chosen)
        found = []
        for k, pixels in enumerate(to_uint8(images)):
            i, j = divmod(k, num_images)  # images of a prompt follow one another
            place = {"row": first_row + i, "slot": i % size, "rows": size}
            own = {"prompt": texts[i], "seed": seed + j, **place}
            recipe = Recipe(**own, **about, pixels=pixels_sha256(pixels))
            found.append(DrawnImage.from_pixels(pixels, recipe))
        return found

    def redraw(self, picture: Picture | Recipe) -> DrawnImage:
        """Draws a picture again by what its PNG file says, bit for bit.

        Another JAX or another device may round otherwise, which is warned of.

        Args:
            picture: a file that `draw` or `--mode=sample` saved, one opened, or the
                recipe that was read of it.

        Raises:
            UserError: where it does not say how it was drawn, or was drawn by other
                weights or in another dtype.
        """
        is_read = isinstance(picture, Recipe)
        recipe = picture if is_read else read_recipe(picture)
        chosen = recipe.sample
        self._need(flow_group("t2i", chosen.solver), "text to image")
        about = self._about(chosen)
        check_same(recipe, about)
        # In the same place of a program of the same size, where it rounds the same.
        ids = self._ids([recipe.prompt] * recipe.rows)
        first_row = recipe.row - recipe.slot
        program = self._programs.text_to_image
        drawn = self._in_batches(program, (ids,), recipe.seed, first_row, chosen)
        pixels = to_uint8(drawn[recipe.slot])  # the other rows are drawn in vain
        again = recipe._replace(**about, pixels=pixels_sha256(pixels))
        if again.pixels != recipe.pixels:
            logging.warning(
                "drawn again, but not bit for bit: it was made by %s, this is %s",
                recipe.machinery,
                again.machinery,
            )
        return DrawnImage.from_pixels(pixels, again)

    def _about(self, options: SampleOptions) -> dict[str, Any]:
        """Returns the fields of a recipe that all pictures of a call share."""
        needed = DIRECTIONS["text_to_image"].groups_of(options.solver)
        # Of one group for both directions the whole.
        groups = find_providers(needed, self.params)
        for group in groups:
            if group not in self._digests:  # gigabytes are hashed once
                self._digests[group] = params_sha256(self.params[group])
        return {
            "options": {name: getattr(options, name) for name in OPTIONS},
            "dtype": jnp.dtype(self.nets.dit.dtype).name,
            "weights": {group: self._digests[group] for group in groups},
            "place": self.place,
            "package": flowtok_jax.__version__,
            "jax": jax.__version__,
            "device": jax.default_backend(),
        }
