"""A trained FlowTok as the queue sees it: rows of one group in, as many results out.

Programs have fixed numbers of rows. A row's answer must not depend on its company, but
a program of another size may round otherwise: at the start each size draws the same
rows, and sizes that give other bits than the largest one are left out.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.flow.samplers import AVERAGE, SOLVERS
from flowtok_jax.models.build import has_group
from flowtok_jax.pipeline import FlowTok, SampleOptions
from flowtok_jax.runtime.batches import filled, program_rows
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.sampling import flow_group
from flowtok_jax.serve.edits import EDITS

# Rows of the programs. On a CPU one or two rows round otherwise than more of them.
SIZES = (4, 8, 16)
DRAW = "draw"
DESCRIBE = "describe"


class RowGroup(NamedTuple):
    """Group of rows that one program computes at once.

    Attributes:
        kind: DRAW, of pairs of a prompt and a seed; DESCRIBE, of pairs of an image
            [s, s, 3] in [0, 1] and a seed; or a name of EDITS, of pairs of its
            arguments and a seed.
        options: of sampling.
    """

    kind: str
    options: SampleOptions


class Engine:
    """The directions of a FlowTok, in batches of few sizes.

    Attributes:
        guided: those of `solvers` whose guidance a request can choose.

    Args:
        sizes: rows of the programs, from the smallest to the largest.
    """

    def __init__(self, flowtok: FlowTok, sizes: Sequence[int] = SIZES):
        self.flowtok = flowtok
        # Callers are told of unknown words; prompts are neither logged nor kept.
        flowtok.vocabulary = flowtok.vocabulary.quiet()
        # Programs take these very numbers of rows, and no next larger one.
        assert all(program_rows(size, size) == size for size in sizes)  # 4, 6, 8, 12
        self.sizes = tuple(sizes)
        self.image_size = flowtok.nets.tokenizer.image_size
        self.solvers = tuple(name for name in (*SOLVERS, AVERAGE) if self._has(name))
        takes_scale = flowtok.nets.student.takes_scale
        self.guided = tuple(s for s in self.solvers if s != AVERAGE or takes_scale)
        self.draws = bool(self.solvers)
        self.describes = has_group("i2t", flowtok.params)
        # Pictures are read before they are edited.
        has_both = self._has("euler") and self.describes
        self.edits = tuple(EDITS) if has_both else ()

    def _has(self, solver: str) -> bool:
        return has_group(flow_group("t2i", solver), self.flowtok.params)

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Returns the words of prompts that the vocabulary lacks, each once."""
        return list(self.flowtok.vocabulary.count(prompts).unknown)

    def drawing(self, **options: Any) -> RowGroup:
        """Returns the work of drawing, with options that replace the model's own.

        Raises:
            UserError: where an option is wrong, or the weights cannot do it.
        """
        if not self.draws:
            raise UserError("these weights cannot draw; expected weights with t2i")
        flowtok = self.flowtok
        chosen = flowtok.changed(flowtok.sample, options).check("sample")
        if chosen.solver not in self.solvers:
            raise UserError(
                f"solver is {chosen.solver!r}; expected one that these weights have: "
                f"{', '.join(self.solvers)}"
            )
        return RowGroup(DRAW, chosen._replace(batch_size=self.sizes[-1]))

    def describing(self, **options: Any) -> RowGroup:
        """Returns the work of captioning, with options that replace the model's own.

        Raises:
            UserError: where an option is wrong, or the weights cannot do it.
        """
        if not self.describes:
            raise UserError("these weights cannot describe; expected weights with i2t")
        flowtok = self.flowtok
        return RowGroup(DESCRIBE, flowtok.changed(flowtok.caption, options))

    def editing(self, kind: str) -> RowGroup:
        """Returns the work of an edit.

        Raises:
            UserError: where the weights cannot do it.
        """
        if kind not in self.edits:
            raise UserError(
                "these weights cannot edit; expected weights with t2i and i2t"
            )
        return RowGroup(kind, self.flowtok.sample)

    def record(
        self, pixels: np.ndarray, prompt: str, seed: int, work: RowGroup
    ) -> dict[str, str]:
        """Returns text chunks that say how to draw a picture again, bit for bit."""
        rows = self.sizes[0]  # of the smallest program; all of them give these bits
        options = work.options._asdict()
        image = pixels[None].astype(np.float32) / 255
        (drawn,) = self.flowtok.with_recipes(image, [prompt] * rows, seed, **options)
        return drawn.text

    def most(self, work: RowGroup) -> int:
        """Returns the rows of the queue that one batch of the work can have."""
        if work.kind == DRAW:
            return self.sizes[-1]
        if work.kind in EDITS:
            return 1
        # Each image is as many rows as it has candidates.
        return max(1, self.sizes[-1] // work.options.candidates)

    def compute(self, work: RowGroup, values: Sequence[tuple[Any, int]]) -> list[Any]:
        """Computes a batch: images of uint8 where it draws, captions if it describes,
        lists of EditedPicture if it edits.

        Args:
            values: prompts, images or arguments, each with its seed.
        """
        if work.kind in EDITS:
            ((arguments, seed),) = values
            edit = EDITS[work.kind]
            return [edit(self.flowtok, self._describe_one, seed, **arguments)]
        inputs, seeds = zip(*values, strict=True)
        if work.kind == DRAW:
            return self._draw(inputs, seeds, work.options)
        return self._describe(np.stack(inputs), seeds, work.options)

    def _size(self, count: int) -> int:
        """Returns the rows of the smallest program that has room for so many."""
        fitting = [size for size in self.sizes if size >= count]
        return fitting[0] if fitting else program_rows(count, count)

    def _draw(
        self, prompts: Sequence[str], seeds: Sequence[int], options: SampleOptions
    ) -> list[np.ndarray]:
        # Filled up here: `text_to_image` would take a program of a size between ours.
        missing = self._size(len(prompts)) - len(prompts)
        texts = [*prompts, *[""] * missing]
        padded = [*seeds, *[0] * missing]
        drawn = self.flowtok.text_to_image(texts, padded, **options._asdict())
        return list(to_uint8(drawn[: len(prompts)]))

    def _describe(
        self, images: np.ndarray, seeds: Sequence[int], options: SampleOptions
    ) -> list[str]:
        """Captions images, all candidates of all of them in one batch."""
        each = options.candidates
        rows = np.repeat(images, each, axis=0)
        # A caption's seeds count on from its own, and begin again after the largest.
        own = [(seed + k) % 2**32 for seed in seeds for k in range(each)]
        size = self._size(len(rows))
        padded = filled(rows, size)
        one = options._replace(candidates=1, batch_size=size)
        said = self.flowtok.image_to_text(
            padded, [*own, *[0] * (size - len(own))], **one._asdict()
        )
        if each == 1:
            return said[: len(images)]
        # [b * each] -> [b each]
        errors = self.flowtok.drawing_errors(said, padded)[: len(rows)]
        best = errors.reshape(-1, each).argmin(1)
        return [said[i * each + k] for i, k in enumerate(best)]

    def _describe_one(self, image: np.ndarray) -> str:
        return self._describe(image[None], (0,), self.flowtok.caption)[0]

    def warm(self) -> None:
        """Compiles the programs of the model's own options, and chooses their sizes."""
        if self.draws:
            self._choose_sizes()
        if self.describes:
            side = self.image_size
            images = np.linspace(0, 1, side * side * 3, dtype=np.float32)
            probe = (images.reshape(side, side, 3), 0)
            work = self.describing()
            # One image, and as many as go together.
            for count in sorted({1, self.most(work)}):
                self.compute(work, [probe] * count)

    def _choose_sizes(self) -> None:
        """Leaves out the sizes whose programs round otherwise than the largest one."""
        largest = self.sizes[-1]
        options = self.drawing().options._asdict()
        vocabulary = self.flowtok.vocabulary
        # Captions of known words.
        ids = np.random.default_rng(0).integers(0, len(vocabulary), (largest, 8))
        texts = vocabulary.decode(ids)

        def draw(count: int) -> np.ndarray:
            return self.flowtok.text_to_image(
                texts[:count], list(range(count)), **options
            )

        wanted = draw(largest)
        smaller = self.sizes[:-1]
        kept = [s for s in smaller if np.array_equal(draw(s), wanted[:s])]
        if dropped := sorted(set(smaller) - set(kept)):
            logging.info(
                "batches of %s rows round otherwise than those of %d, and are not used",
                " and ".join(map(str, dropped)),
                largest,
            )
        self.sizes = (*kept, largest)
        # Another choice of the page: pictures of a prompt that differ.
        work = self.drawing(source="sample")
        (pixels,) = self.compute(work, [("", 0)])
        self.record(pixels, "", 0, work)  # which digests the weights once
