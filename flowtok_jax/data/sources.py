"""Captioned images by random access: a source as one string, KIND[:ARGUMENTS].

    shapes[:SPLIT]   generated scenes; SPLIT is train (default), seen or held_out

A record is {"image": uint8 [s, s, 3], "caption": str}.
"""

import numpy as np

from flowtok_jax.data import scenes
from flowtok_jax.errors import UserError


class Shapes:
    """Scenes generated from (seed, split, index); the same index, the same record."""

    def __init__(self, split: str, image_size: int, seed: int, length: int = 1 << 20):
        if split not in scenes.SPLITS:
            raise UserError(
                f"source shapes:{split} has no such split; wanted one of "
                f"{', '.join(scenes.SPLITS)}"
            )
        if image_size % 2:
            raise UserError(
                f"source shapes makes images of even sides; got {image_size}"
            )
        self.split, self.image_size, self.seed = split, image_size, seed
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"Shapes({self.split!r}, {self.image_size}, seed={self.seed})"

    def _draw(self, index: int) -> tuple[scenes.Scene, np.random.Generator]:
        entropy = (self.seed, scenes.SPLITS.index(self.split), int(index))
        rng = np.random.default_rng(entropy)
        return scenes.draw_scene(rng, self.split == "held_out"), rng

    def scene(self, index: int) -> scenes.Scene:
        """The scene of a record: what its image shows and its caption says."""
        return self._draw(index)[0]

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        scene, rng = self._draw(index)
        captions = scenes.captions_of(scene)
        caption = captions[rng.integers(len(captions))]
        image = scenes.render(scene, rng, self.image_size)
        return {"image": image, "caption": caption}


KINDS = ("shapes",)


def make_source(spec: str, *, image_size: int, seed: int) -> Shapes:
    """A source from its string.

    Raises:
        UserError: for a kind or an argument that is not known.
    """
    kind, _, rest = spec.partition(":")
    if kind == "shapes":
        return Shapes(rest or "train", image_size, seed)
    raise UserError(
        f"source {spec!r} is of kind {kind!r}; wanted one of {', '.join(KINDS)}, "
        "for example --config.data.train=shapes"
    )
