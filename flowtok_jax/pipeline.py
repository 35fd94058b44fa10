"""A trained FlowTok in one object: text to image and image to text.

flowtok = FlowTok.from_pretrained("runs/demo")  # or weights/xl, or a hub id
images = flowtok.text_to_image(["a red circle at the top left"])
captions = flowtok.image_to_text(images)
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from flowtok_jax.array_types import Image, Params
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.models.build import Nets, make_nets
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.batches import put_rows, row_parts, run_rows
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, to_place
from flowtok_jax.runtime.mesh import in_mesh, put, replicated
from flowtok_jax.sampling import Programs, SampleOptions
from flowtok_jax.tasks import abstract_group
from flowtok_jax.weights import pretrained
from flowtok_jax.weights.place import groups_of, load_group, read_group
from flowtok_jax.weights.workdir import open_vocabulary, read_config


def _replace(options: SampleOptions, changes: dict) -> SampleOptions:
    unknown = sorted(set(changes) - set(SampleOptions._fields))
    if unknown:
        raise UserError(
            f"no option {', '.join(unknown)}; wanted some of "
            f"{', '.join(SampleOptions._fields)}"
        )
    return options._replace(**changes).check()


class FlowTok:
    """Networks, their parameters by group, and a vocabulary.

    `params` maps a group of models/build.py to its parameters; a direction whose group
    (t2i or i2t) is absent is refused with a UserError when it is asked for.

    With a `mesh` the rows of a batch are split over its devices, parameters are copied
    to all, and each process, which has to make the same calls, gets all the results.
    """

    def __init__(
        self,
        nets: Nets,
        params: Params,
        vocabulary: Vocabulary,
        *,
        sample: SampleOptions = SampleOptions(),  # noqa: B008 - immutable
        caption: SampleOptions = SampleOptions(scale=1.0),  # noqa: B008
        text_scale: float = 1.0,
        mesh: Mesh | None = None,
    ):
        if len(vocabulary) > nets.clip.vocab_size:
            raise UserError(
                f"the vocabulary has {len(vocabulary)} tokens, more than the "
                f"{nets.clip.vocab_size} of clip.vocab_size: it is another model's"
            )
        self.nets, self.vocabulary = nets, vocabulary
        self.mesh = mesh
        self.params = put(params, replicated(mesh)) if mesh else jax.device_put(params)
        self.sample = sample.check("sample")
        self.caption = caption.check("caption")
        self.text_scale = text_scale
        self._programs = Programs(nets, text_scale)
        self._compiled: dict[tuple, Callable] = {}

    @classmethod
    def from_config(
        cls,
        config: ConfigDict,
        params: Params,
        vocabulary: Vocabulary,
        mesh: Mesh | None = None,
    ) -> "FlowTok":
        """With the networks and the sampling options of a config."""
        return cls(
            make_nets(config),
            params,
            vocabulary,
            sample=SampleOptions(**config.sample),
            caption=SampleOptions(**config.caption),
            text_scale=config.loss.i2t.text_scale,
            mesh=mesh,
        )

    @classmethod
    def from_workdir(
        cls,
        workdir: str | Place,
        config: ConfigDict | None = None,
        mesh: Mesh | None = None,
    ) -> "FlowTok":
        """The newest EMA weights of every stage trained in a workdir.

        Args:
            config: instead of the workdir's own, to sample with other options.
            mesh: the devices to work on, as of the class.

        Raises:
            UserError: where the directory holds no trained flow.
        """
        workdir = to_place(workdir)
        config = read_config(workdir) if config is None else config
        trained = groups_of(workdir)
        if not trained:
            raise UserError(
                f"no checkpoint in {workdir}; train one there first, or give the "
                "workdir of a run"
            )
        nets = make_nets(config)
        needed = set(trained) | {"clip", "tokenizer"}
        if "i2t" in trained:
            needed.add("text_tokenizer")
        params = {
            g: load_group(g, nets, abstract_group(nets, g), config, workdir)
            for g in sorted(needed)
        }
        vocabulary = open_vocabulary(workdir, config)
        return cls.from_config(config, params, vocabulary, mesh)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Place,
        config: ConfigDict | None = None,
        *,
        local_files_only: bool = False,
        mesh: Mesh | None = None,
    ) -> "FlowTok":
        """Weights of a directory, or of a repository on the Hugging Face hub.

        Args:
            source: what `save_pretrained` or `python -m flowtok_jax.convert` wrote, a
                hub id of such files, or the workdir of a run.
            config: instead of the stored one, to sample with other options.
            local_files_only: take a hub id from the cache, without the network.
            mesh: the devices to work on, as of the class.

        Raises:
            UserError: where the weights are not there, damaged or incomplete.
        """
        place = pretrained.find(source, local_files_only=local_files_only)
        if not pretrained.is_pretrained(place):
            return cls.from_workdir(place, config, mesh)
        stored, groups = pretrained.read_config(place), groups_of(place)
        needed = {"clip", "tokenizer"}
        if "i2t" in groups:
            needed.add("text_tokenizer")
        missing = sorted(needed - set(groups))
        if missing:
            raise UserError(
                f"{place} has {', '.join(groups)} only, and not {', '.join(missing)}; "
                "convert them all into one directory"
            )
        nets = pretrained.make_nets(place) if config is None else make_nets(config)
        config = stored if config is None else config
        params = {
            group: read_group(place, nets, group, abstract_group(nets, group))
            for group in groups
        }
        vocabulary = pretrained.read_vocabulary(place, config.latent.tokens)
        return cls.from_config(config, params, vocabulary, mesh)

    def save_pretrained(self, directory: str | Place) -> None:
        """Writes a directory for `from_pretrained`, whole or not at all.

        Raises:
            UserError: where there is something in the directory already.
        """
        config = pretrained.make_config(
            self.nets,
            sample=self.sample._asdict(),
            caption=self.caption._asdict(),
            text_scale=self.text_scale,
        )
        groups = {name: functools.partial(dict, p) for name, p in self.params.items()}
        pretrained.save(to_place(directory), config, groups, self.vocabulary)

    def encode_text(self, prompts: Sequence[str]) -> Posterior:
        """The posterior of the source tokens [b, n, c] of text to image."""
        self._need("t2i", "encoding text")
        return self._run(self._programs.project, self.vocabulary.encode(prompts))

    def encode_image(self, images: ArrayLike) -> Posterior:
        """The posterior of the raw tokens [b, n, c] of images [b, s, s, 3], [0, 1]."""
        return self._run(self._programs.encode, self._checked(images))

    def decode_image(self, tokens: ArrayLike, prompts: Sequence[str]) -> Image:
        """Images [b, s, s, 3] in [0, 1] of raw tokens [b, n, c], guided by captions."""
        ids = self.vocabulary.encode(prompts)
        return self._run(self._programs.decode, tokens, ids)

    def reconstruct_text(self, prompts: Sequence[str]) -> list[str]:
        """Captions through the text tokenizer and back."""
        self._need("text_tokenizer", "decoding text")
        ids = self._run(
            self._programs.reconstruct_text, self.vocabulary.encode(prompts)
        )
        return self.vocabulary.decode(np.asarray(ids))

    def text_to_image(
        self, prompts: Sequence[str], seed: int = 0, first_row: int = 0, **options
    ) -> Float[np.ndarray, "b s s 3"]:
        """One image a prompt, in [0, 1].

        Args:
            first_row: number of the first prompt: the noise of prompt i is that of
                (seed, first_row + i), whatever the batch.
            options: of SampleOptions, instead of those the object was made with.
        """
        chosen = _replace(self.sample, options)
        self._need("t2i", "text to image")
        if isinstance(prompts, str):
            raise UserError(f"prompts are {prompts!r}; wanted a list of captions")
        if not len(prompts):
            raise UserError("no prompts; wanted at least one")
        ids = self.vocabulary.encode(prompts)
        program = self._programs.text_to_image
        return self._in_batches(program, ids, seed, first_row, chosen)

    def image_to_text(
        self, images: ArrayLike, seed: int = 0, first_row: int = 0, **options
    ) -> list[str]:
        """One caption an image; images are [b, s, s, 3] in [0, 1].

        Args:
            first_row: as of `text_to_image`.
            options: of SampleOptions, instead of those the object was made with.
        """
        chosen = _replace(self.caption, options)
        self._need("i2t", "image to text")
        images = self._checked(images)
        program = self._programs.image_to_text
        ids = self._in_batches(program, images, seed, first_row, chosen)
        return self.vocabulary.decode(ids)

    def _need(self, group: str, what: str) -> None:
        if group not in self.params:
            raise UserError(
                f"these weights cannot do {what}: group {group!r} is not among "
                f"{', '.join(sorted(self.params))}; train stage {group} first"
            )

    def _checked(self, images: ArrayLike) -> np.ndarray:
        images, side = np.asarray(images), self.nets.tokenizer.image_size
        if images.ndim != 4 or images.shape[1:] != (side, side, 3) or not len(images):
            raise UserError(
                f"images have shape {images.shape}; wanted (b, {side}, {side}, 3) "
                "with b at least 1"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f"images are {images.dtype}; wanted floats in [0, 1]: divide uint8 by "
                "255"
            )
        if not (images.min() >= -0.01 and images.max() <= 1.01):
            raise UserError(
                f"images go from {images.min():g} to {images.max():g}; wanted [0, 1]"
            )
        return images.astype(np.float32)

    def _program(self, function: Callable, **static) -> Callable:
        """The compiled function; one for each choice of static arguments."""
        key = (function.__name__, *static.values())
        if key not in self._compiled:
            function = functools.partial(function, **static)
            if self.mesh is None:
                self._compiled[key] = jax.jit(function)
            else:
                whole = replicated(self.mesh)
                function = in_mesh(self.mesh, function)
                self._compiled[key] = jax.jit(function, out_shardings=whole)
        return self._compiled[key]

    def _run(self, function: Callable, *inputs):
        inputs = (put_rows(self.mesh, np.asarray(x)) for x in inputs)
        return self._program(function)(self.params, *inputs)

    def _in_batches(
        self,
        function: Callable,
        inputs: np.ndarray,
        seed: int,
        first_row: int,
        options: SampleOptions,
    ) -> np.ndarray:
        """Runs all the inputs through one program, the last batch filled up."""
        program = self._program(function, options=options)
        parts = row_parts(self.mesh)
        count = len(inputs)
        size = -(-min(options.batch_size, count) // parts) * parts
        key = np.asarray(jax.random.key_data(jax.random.key(seed)))

        def start(rows: np.ndarray) -> Array:
            # The last input is repeated; its noise is that of a row of its own.
            batch = put_rows(self.mesh, inputs[np.minimum(rows, count - 1)])
            numbers = put_rows(self.mesh, first_row + rows)
            return program(self.params, batch, key, numbers)

        return run_rows(start, count, size)
