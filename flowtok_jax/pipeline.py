"""A trained FlowTok in one object: text to image and image to text.

flowtok = FlowTok.from_pretrained("runs/demo")  # or weights/xl, or a hub id
images = flowtok.text_to_image(["a red circle at the top left"])
captions = flowtok.image_to_text(images)
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from flowtok_jax import pretrained
from flowtok_jax.data.captions import Vocabulary
from flowtok_jax.errors import UserError
from flowtok_jax.flow import samplers
from flowtok_jax.mesh import put, replicated
from flowtok_jax.models.build import Nets, make_nets
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.places import Place, to_place
from flowtok_jax.shapes import ROWS, CaptionIds, Image, Params, TextFeatures, Tokens
from flowtok_jax.weights import groups_of, load_group, read_group
from flowtok_jax.workdir import open_vocabulary, read_config

SOURCES = ("sample", "mean")


class SampleOptions(NamedTuple):
    """How the flow is run; one of these, and one batch size, is one compiled program.

    `scale` is that of the guidance, 1 for none. `source` starts from a sample of the
    source's posterior (diversity) or from its mean (one result a caption or image).
    """

    num_steps: int = 20
    scale: float = 2.0
    source: str = "sample"
    solver: str = "euler"
    times: str = "release"
    batch_size: int = 64

    def check(self) -> "SampleOptions":
        """Itself, or a UserError that names what is wrong."""
        known = {
            "source": SOURCES,
            "solver": tuple(samplers.SOLVERS),
            "times": samplers.TIMES,
        }
        for field, choices in known.items():
            if getattr(self, field) not in choices:
                raise UserError(
                    f"sample.{field} is {getattr(self, field)!r}; wanted one of "
                    f"{', '.join(choices)}"
                )
        for field in ("num_steps", "batch_size"):
            if getattr(self, field) < 1:
                raise UserError(
                    f"sample.{field} is {getattr(self, field)}; wanted at least 1"
                )
        return self


def _replace(options: SampleOptions, changes: dict) -> SampleOptions:
    unknown = sorted(set(changes) - set(SampleOptions._fields))
    if unknown:
        raise UserError(
            f"no option {', '.join(unknown)}; wanted some of "
            f"{', '.join(SampleOptions._fields)}"
        )
    return options._replace(**changes).check()


def _start(
    posterior: Posterior, key_data: Array, rows: Int[Array, " b"], source: str
) -> Tokens:
    """The flow's source; the noise of a row depends on its number, not on the batch."""
    if source == "mean":
        return posterior.mean
    key, shape = jax.random.wrap_key_data(key_data), posterior.mean.shape[1:]
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))
    return posterior.mean + posterior.std * noise(rows)


def _flow(nets: Nets, dit: Params, z_src: Tokens, options: SampleOptions) -> Tokens:
    velocity = samplers.guided(
        lambda z, t, null: nets.dit.apply({"params": dit}, z, t, null), options.scale
    )
    solver = samplers.SOLVERS[options.solver]
    return solver(velocity, z_src, options.num_steps, options.times)


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
        self.sample, self.caption = sample.check(), caption.check()
        self.text_scale = text_scale
        self._programs: dict[tuple, Callable] = {}

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
        params = {g: load_group(g, nets, config, workdir) for g in sorted(needed)}
        vocabulary = open_vocabulary(workdir, config)
        return cls.from_config(config, params, vocabulary, mesh)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Place,
        config: ConfigDict | None = None,
        *,
        local_files_only: bool = False,
    ) -> "FlowTok":
        """Weights of a directory, or of a repository on the Hugging Face hub.

        Args:
            source: what `save_pretrained` or `python -m flowtok_jax.convert` wrote, a
                hub id of such files, or the workdir of a run.
            config: instead of the stored one, to sample with other options.
            local_files_only: take a hub id from the cache, without the network.

        Raises:
            UserError: where the weights are not there, damaged or incomplete.
        """
        place = pretrained.find(source, local_files_only=local_files_only)
        if not pretrained.is_pretrained(place):
            return cls.from_workdir(place, config)
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
        params = {group: read_group(place, nets, group) for group in groups}
        vocabulary = pretrained.read_vocabulary(place, config.latent.tokens)
        return cls.from_config(config, params, vocabulary)

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
        return self._run(self._project_t2i, self.vocabulary.encode(prompts))

    def encode_image(self, images: ArrayLike) -> Posterior:
        """The posterior of the raw tokens [b, n, c] of images [b, s, s, 3], [0, 1]."""
        return self._run(self._encode, self._checked(images))

    def decode_image(self, tokens: ArrayLike, prompts: Sequence[str]) -> Image:
        """Images [b, s, s, 3] in [0, 1] of raw tokens [b, n, c], guided by captions."""
        ids = self.vocabulary.encode(prompts)
        return self._run(self._decode, tokens, ids)

    def reconstruct_text(self, prompts: Sequence[str]) -> list[str]:
        """Captions through the text tokenizer and back."""
        self._need("text_tokenizer", "decoding text")
        ids = self._run(self._reconstruct_text, self.vocabulary.encode(prompts))
        return self.vocabulary.decode(np.asarray(ids))

    def text_to_image(
        self, prompts: Sequence[str], seed: int = 0, **options
    ) -> Float[np.ndarray, "b s s 3"]:
        """One image a prompt, in [0, 1].

        Args:
            options: of SampleOptions, instead of those the object was made with.
        """
        chosen = _replace(self.sample, options)
        self._need("t2i", "text to image")
        if isinstance(prompts, str):
            raise UserError(f"prompts are {prompts!r}; wanted a list of captions")
        if not len(prompts):
            raise UserError("no prompts; wanted at least one")
        ids = self.vocabulary.encode(prompts)
        return self._in_batches(self._text_to_image, ids, seed, chosen)

    def image_to_text(self, images: ArrayLike, seed: int = 0, **options) -> list[str]:
        """One caption an image; images are [b, s, s, 3] in [0, 1].

        Args:
            options: of SampleOptions, instead of those the object was made with.
        """
        chosen = _replace(self.caption, options)
        self._need("i2t", "image to text")
        images = self._checked(images)
        ids = self._in_batches(self._image_to_text, images, seed, chosen)
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
        if key not in self._programs:
            out = replicated(self.mesh) if self.mesh else None
            program = jax.jit(functools.partial(function, **static), out_shardings=out)
            self._programs[key] = program
        return self._programs[key]

    @property
    def _row_parts(self) -> int:
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"] if self.mesh else 1

    def _put(self, rows: np.ndarray) -> Array:
        """An input on the device, or split over the mesh where that divides it."""
        if self.mesh is None:
            return jnp.asarray(rows)
        splits = len(rows) % self._row_parts == 0
        return put(rows, NamedSharding(self.mesh, ROWS if splits else PartitionSpec()))

    def _run(self, function: Callable, *inputs):
        inputs = (self._put(np.asarray(x)) for x in inputs)
        return self._program(function)(self.params, *inputs)

    def _in_batches(
        self, function: Callable, inputs: np.ndarray, seed: int, options: SampleOptions
    ) -> np.ndarray:
        """Runs all the inputs through one program, the last batch filled up."""
        program = self._program(function, options=options)
        parts, count = self._row_parts, len(inputs)
        size = -(-min(options.batch_size, count) // parts) * parts
        rows = np.arange(-(-count // size) * size)
        key, results = np.asarray(jax.random.key_data(jax.random.key(seed))), []
        for part in rows.reshape(-1, size):
            batch = self._put(inputs[np.minimum(part, count - 1)])
            results.append(program(self.params, batch, key, self._put(part)))
        return np.concatenate([np.asarray(r) for r in results])[:count]

    # What the programs compute.

    def _features(self, params: Params, ids: CaptionIds) -> TextFeatures:
        return self.nets.clip.apply({"params": params["clip"]["clip"]}, ids)

    def _project(self, params: Params, group: str, ids: CaptionIds) -> Posterior:
        projector = {"params": params[group]["projector"]}
        return self.nets.projector.apply(projector, self._features(params, ids))

    def _project_t2i(self, params: Params, ids: CaptionIds) -> Posterior:
        return self._project(params, "t2i", ids)

    def _encode(self, params: Params, images: Image) -> Posterior:
        tokenizer = {"params": params["tokenizer"]["tokenizer"]}
        return self.nets.tokenizer.apply(tokenizer, images, method="encode")

    def _decode(self, params: Params, tokens: Tokens, ids: CaptionIds) -> Image:
        tokenizer = {"params": params["tokenizer"]["tokenizer"]}
        text_feats = self._features(params, ids)
        image = self.nets.tokenizer.apply(
            tokenizer, tokens, text_feats, method="decode"
        )
        return jnp.clip(image, 0.0, 1.0)

    def _decode_text(self, params: Params, tokens: Tokens) -> CaptionIds:
        decoder = {"params": params["text_tokenizer"]["text_decoder"]}
        return self.nets.text_decoder.apply(decoder, tokens).argmax(-1)

    def _reconstruct_text(self, params: Params, ids: CaptionIds) -> CaptionIds:
        posterior = self._project(params, "text_tokenizer", ids)
        return self._decode_text(params, posterior.mean)

    def _text_to_image(self, params, ids, key, rows, *, options):
        posterior = self._project_t2i(params, ids)
        z_txt = _start(posterior, key, rows, options.source)
        z_img = _flow(self.nets, params["t2i"]["dit"], z_txt, options)
        return self._decode(params, z_img / self.nets.tokenizer.latent_scale, ids)

    def _image_to_text(self, params, images, key, rows, *, options):
        posterior = self._encode(params, images)
        z_img = _start(posterior, key, rows, options.source)
        z_img = z_img * self.nets.tokenizer.latent_scale
        z_txt = _flow(self.nets, params["i2t"]["dit"], z_img, options)
        return self._decode_text(params, z_txt / self.text_scale)
