"""Programs of a trained FlowTok made ahead of time: compiled, or exported to files."""

import functools
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from flowtok_jax.array_types import Params
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.models.build import Nets, find_provider, has_group
from flowtok_jax.models.quantized import check_exact
from flowtok_jax.runtime.batches import RowPrograms
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, to_place
from flowtok_jax.sampling import (
    DIRECTIONS,
    Programs,
    SampleOptions,
    flow_group,
    noise_key,
)
from flowtok_jax.weights.exported import PLATFORMS, RowProgram, write_programs


class AheadOfTime:
    """The part of `FlowTok` that compiles and exports what draws and what captions."""

    # Of FlowTok, which this is a part of.
    nets: Nets
    params: Params
    vocabulary: Vocabulary
    caption: SampleOptions
    save_pretrained: Callable[..., None]
    changed: Callable[..., SampleOptions]
    _programs: Programs
    _compiled: RowPrograms
    _judging: SampleOptions
    _ids: Callable[[object], np.ndarray]
    _images: Callable[[object], np.ndarray]

    def compile(self, batch_sizes: Iterable[int] = (1,), **options) -> None:
        """Compiles what draws and what captions, before the first call needs it.

        Args:
            batch_sizes: numbers of prompts or images that will come at once; others
                that fall into the same program are ready as well.
            options: fields of SampleOptions that replace the object's own.

        Raises:
            UserError: where a number or an option is none.
        """
        key = noise_key(0)
        programs = [(p.function, [p.row], p.options) for p in self._directions(options)]
        if self.changed(self.caption, options).candidates > 1:
            both = [self._ids([""]), self._images(np.zeros((1, 8, 8, 3)))]
            programs.append((self._programs.drawing_error, both, self._judging))
        for count in batch_sizes:
            if not isinstance(count, numbers.Integral) or count < 1:
                raise UserError(f"batch_sizes has {count!r}; expected integers from 1")
            for function, row, chosen in programs:
                most = chosen.batch_size
                self._compiled.compile(
                    function, self.params, row, key, count, most=most, options=chosen
                )

    def export(
        self,
        directory: str | Place,
        *,
        platforms: Sequence[str] = PLATFORMS,
        **options,
    ) -> None:
        """Writes what draws and what captions as programs that need JAX only.

        Args:
            platforms: kinds of devices that the programs can run on.
            options: fields of SampleOptions that replace the object's own, for good.

        Raises:
            UserError: where the directory has something in it already, an option is
                none, or a program cannot be made for every number of rows.
        """
        check_exact(self.params)
        programs = list(self._directions(options))
        # Programs take the groups as they are, and not what these are made of.
        save = functools.partial(self.save_pretrained, whole=True)
        write_programs(to_place(directory), programs, self.vocabulary, platforms, save)

    def _directions(self, options: dict) -> Iterator[RowProgram]:
        """Yields the programs of these weights' directions, of one caption an image."""
        size = self.nets.tokenizer.image_size
        for name, direction in DIRECTIONS.items():
            own = getattr(self, direction.section)
            chosen = self.changed(own, {**options, "candidates": 1})
            if has_group(flow_group(direction.flow, chosen.solver), self.params):
                images = np.zeros((1, size, size, 3), np.float32)
                row = images if direction.takes_images else self._ids([""])
                groups = direction.groups_of(chosen.solver)
                groups = {find_provider(group, self.params) for group in groups}
                used = {group: self.params[group] for group in groups}
                yield RowProgram(getattr(self._programs, name), used, row, chosen)
