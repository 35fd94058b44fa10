"""A trained FlowTok in one object: text to image and image to text.

One object loads any trained weights, draws and describes:

    flowtok = FlowTok.from_pretrained("runs/demo")  # or weights/xl, or a hub id
    flowtok.draw(["a red circle at the top left"])[0].save("circle.png")
    captions = flowtok.image_to_text("circle.png")
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Float
from ml_collections import ConfigDict

from flowtok_jax.array_types import Image, Params
from flowtok_jax.data.inputs import (
    Picture,
    check_prompts,
    check_tokens,
    load_images,
)
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.flow.average_velocity import teacher_options
from flowtok_jax.flow.samplers import AVERAGE, check_scale
from flowtok_jax.models.build import BOTH, Nets, has_group, make_nets
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.models.quantized import quantize_blocks
from flowtok_jax.pipeline.ahead import AheadOfTime
from flowtok_jax.pipeline.edit_programs import EditOptions
from flowtok_jax.pipeline.editing import Editing
from flowtok_jax.pipeline.recipe import Recording
from flowtok_jax.pipeline.saving import Saving
from flowtok_jax.runtime.batches import RowPrograms, put_rows
from flowtok_jax.runtime.config import check_seed, seeds_of_rows
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place
from flowtok_jax.runtime.mesh import put, replicated
from flowtok_jax.sampling import (
    DIRECTIONS,
    Programs,
    SampleOptions,
    choose_without_judge,
    flow_group,
    noise_key,
)
from flowtok_jax.tasks import TASKS, abstract_groups
from flowtok_jax.weights.groups import known_groups, places_of
from flowtok_jax.weights.lora import Loras
from flowtok_jax.weights.place import Weights, load_groups, open_weights

# What `data.inputs.load_images` reads.
Images = ArrayLike | Picture | Iterable[ArrayLike | Picture]


class FlowTok(Recording, Editing, AheadOfTime, Saving):
    """Networks, their parameters by group, and a vocabulary.

    `params` maps the name of a group of networks to its parameters; a direction whose
    group (t2i or i2t, or both) is absent is refused with a UserError when asked for.

    With a `mesh` the rows of a batch are split over its devices, parameters are copied
    to all, and each process, which has to make the same calls, gets all the results.
    `place` says where the weights are from, for the pictures that are saved.
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
        losses: Mapping[str, Any] | None = None,
        mesh: Mesh | None = None,
        place: str = "",
    ):
        if len(vocabulary) > nets.clip.vocab_size:
            raise UserError(
                f"the vocabulary has {len(vocabulary)} tokens, more than the "
                f"{nets.clip.vocab_size} of clip.vocab_size: it is another model's"
            )
        self.nets = nets
        self.vocabulary = vocabulary
        self.mesh = mesh
        self.params = put(params, replicated(mesh)) if mesh else jax.device_put(params)
        self.sample = sample.check("sample")
        self.caption = caption.check("caption")
        self.text_scale = text_scale
        # For further training, which `save_pretrained` keeps.
        self.losses = losses or {}
        self._programs = Programs(nets, text_scale)
        self._compiled = RowPrograms(mesh)
        self.place = place
        self.sources: Sequence[Weights] = ()  # where `params` are from
        self._digests: dict[str, str] = {}  # by group, once they are asked for

    @classmethod
    def from_config(
        cls,
        config: ConfigDict,
        params: Params,
        vocabulary: Vocabulary,
        mesh: Mesh | None = None,
        nets: Nets | None = None,
    ) -> "FlowTok":
        """Makes an object with a config's sampling options and, unless given, nets."""
        return cls(
            make_nets(config) if nets is None else nets,
            params,
            vocabulary,
            sample=SampleOptions(**config.sample),
            caption=SampleOptions(**config.caption),
            text_scale=config.loss.i2t.text_scale,
            losses=config.loss.to_dict(),
            mesh=mesh,
        )

    @classmethod
    def from_weights(
        cls,
        weights: Weights,
        config: ConfigDict | None = None,
        mesh: Mesh | None = None,
        quantize: str | None = None,
    ) -> "FlowTok":
        """Loads every group of opened weights, and what these groups need.

        Args:
            config: used in place of the stored one, to sample with other options.
            mesh: the devices to work on.
            quantize: used in place of the config's `compute.quantize`.

        Raises:
            UserError: where weights do not exist, are damaged or incomplete.
        """
        nets = weights.make_nets() if config is None else make_nets(config)
        config = weights.config if config is None else config
        # Of another flow than its teacher's with adapters a student would draw.
        adapted = {lora.group for lora in weights.loras}
        flows = (way.flow for way in DIRECTIONS.values())
        stale = {flow_group(f, AVERAGE) for f in flows if adapted & {f, BOTH}}
        found = known_groups(weights, ("clip", *TASKS)) - stale
        needed = {"clip", "tokenizer", *found}
        for task in (TASKS[group] for group in found if group in TASKS):
            needed.update(*(DIRECTIONS[way].groups for way in task.directions))
        places, groups = places_of(weights, needed, config)
        wanted = abstract_groups(nets, groups)
        params = load_groups(wanted, nets, places)
        how = config.compute.quantize if quantize is None else quantize
        if how:
            nets, params = quantize_blocks(nets, params, how)
        vocabulary = weights.vocabulary(config.latent.tokens)
        made = cls.from_config(config, params, vocabulary, mesh, nets)
        made.place = weights.name
        made.sample, made.caption = (
            _without_student(getattr(made, way.section), way.flow, made)
            for way in DIRECTIONS.values()
        )
        made.caption = choose_without_judge(made.caption, made.sample, params)
        made.sources = places
        return made

    @classmethod
    def from_pretrained(
        cls,
        source: str | Place,
        config: ConfigDict | None = None,
        *,
        lora: Loras | None = None,
        local_files_only: bool = False,
        mesh: Mesh | None = None,
        quantize: str | None = None,
    ) -> "FlowTok":
        """Loads weights of a directory, of the package, or of the Hugging Face hub.

        Args:
            source: the workdir of a run, what `save_pretrained` or `python -m
                flowtok_jax.convert` wrote, the name of weights that ship with the
                package, or a hub id OWNER/NAME of such files.
            config: used in place of the stored one, to sample with other options.
            lora: adapters to add: DIR, several of them, or {DIR: weight}, see
                docs/lora.md.
            local_files_only: takes a hub id from the cache, without the network.
            mesh: the devices to work on.
            quantize: "int8" or "int8_dynamic" for weights in less memory.

        Raises:
            UserError: where the weights do not exist, are damaged or incomplete.
        """
        weights = open_weights(source, local_files_only=local_files_only)
        weights = weights if lora is None else weights.with_loras(lora)
        return cls.from_weights(weights, config, mesh, quantize)

    def encode_text(self, prompts: Iterable[str]) -> Posterior:
        """Encodes captions as the posterior of text to image's source [b, n, c]."""
        self._need("t2i", "encoding text")
        return self._run(self._programs.project, self._ids(prompts))

    def encode_image(self, images: Images) -> Posterior:
        """Encodes images, as of `image_to_text`, as a posterior of tokens [b, n, c]."""
        return self._run(self._programs.encode, self._images(images))

    def decode_image(self, tokens: ArrayLike, prompts: Iterable[str]) -> Image:
        """Decodes raw tokens [b, n, c], with their captions, to images in [0, 1]."""
        ids = self._ids(prompts)
        tokenizer = self.nets.tokenizer
        check_tokens(tokens, (len(ids), tokenizer.tokens, tokenizer.channels))
        return self._run(self._programs.decode, tokens, ids)

    def reconstruct_text(self, prompts: Iterable[str]) -> list[str]:
        """Sends captions through the text tokenizer and back."""
        self._need("text_tokenizer", "decoding text")
        ids = self._run(self._programs.reconstruct_text, self._ids(prompts))
        return self.vocabulary.decode(np.asarray(ids))

    def text_to_image(
        self,
        prompts: Iterable[str],
        seed: int | Sequence[int] = 0,
        first_row: int = 0,
        num_images: int = 1,
        **options,
    ) -> Float[np.ndarray, "b s s 3"]:
        """Draws images of prompts, in [0, 1].

        Args:
            prompts: strings, in a list, an array, a column or a generator.
            seed: an integer from 0 to 2**32 - 1; or one a prompt, which then has the
                noise that it has alone.
            first_row: number of the first prompt; seed and row number alone decide the
                noise of a prompt, whatever the batch.
            num_images: images of each prompt, one after the other, of the seeds `seed`,
                `seed` + 1 and so on.
            options: fields of SampleOptions that replace the object's own.
        """
        chosen = self.changed(self.sample, options).check("sample")
        self._need(flow_group("t2i", chosen.solver), "text to image")
        ids = self._ids(prompts)
        seeds = seeds_of_rows(seed, num_images, len(ids))
        program = self._programs.text_to_image
        # A seed alone draws its image again, bit for bit: in batches of its own, since
        # a batch of another size may round otherwise.
        drawn = [self._in_batches(program, (ids,), s, first_row, chosen) for s in seeds]
        return np.stack(drawn, 1).reshape(-1, *drawn[0].shape[1:])

    def image_to_text(
        self,
        images: Images,
        seed: int | Sequence[int] = 0,
        first_row: int = 0,
        **options,
    ) -> list[str]:
        """Captions images.

        Args:
            images: one or several, in a list or an array [b, h, w, 3]: paths, images
                of Pillow, or arrays of any size, of uint8 or of floats in [0, 1].
            seed: an integer from 0 to 2**32 - 1; or one an image, which then has the
                noise that it has alone.
            first_row: number of the first image; seed and row number alone decide the
                noise of an image, whatever the batch.
            options: fields of SampleOptions that replace the object's own.
        """
        chosen = self.changed(self.caption, options)
        self._need(flow_group("i2t", chosen.solver), "image to text")
        images = self._images(images)
        program = self._programs.image_to_text
        seeds = seeds_of_rows(seed, chosen.candidates, len(images), "candidates")
        one = chosen._replace(candidates=1)
        ids = [self._in_batches(program, (images,), s, first_row, one) for s in seeds]
        said = [self.vocabulary.decode(found) for found in ids]
        return said[0] if len(said) == 1 else self._choose(said, images)

    @property
    def _judging(self) -> SampleOptions:
        """Options by which captions are drawn, to choose among them."""
        return self.sample._replace(source="mean")

    def _choose(self, said: list[list[str]], images: np.ndarray) -> list[str]:
        """Returns the caption of each image, of several, that draws nearest to it."""
        errors = [self.drawing_errors(captions, images) for captions in said]
        best = np.argmin(errors, axis=0)
        return [said[k][i] for i, k in enumerate(best)]

    def drawing_errors(self, captions: Iterable[str], images: Images) -> np.ndarray:
        """Returns how far from each image its caption draws, to choose by: [b].

        The numbers are mean squared errors of tokens.
        """
        self._need(flow_group("t2i", self.sample.solver), "choosing among candidates")
        ids = self.vocabulary.encode(check_prompts(captions), warns=False)
        error_of = self._programs.drawing_error
        inputs = (ids, self._images(images))
        return self._in_batches(error_of, inputs, 0, 0, self._judging)

    def changed(self, own: SampleOptions, options: dict[str, Any]) -> SampleOptions:
        """Returns a direction's own options with some of them replaced.

        Raises:
            UserError: where there is no such option, or a value is wrong.
        """
        chosen = own.changed(options)
        takes_scale = self.nets.student.takes_scale
        check_scale(chosen.solver, chosen.scale, own.scale, takes_scale)
        return chosen

    def _need(self, group: str, what: str) -> None:
        if group not in self.params and not has_group(group, self.params):
            raise UserError(
                f"these weights cannot do {what}: group {group!r} is not among "
                f"{', '.join(sorted(self.params))}; train stage {group} first"
            )

    def _ids(self, prompts: object) -> np.ndarray:
        return self.vocabulary.encode(check_prompts(prompts))

    def _images(self, images: object) -> np.ndarray:
        return load_images(images, self.nets.tokenizer.image_size)

    def _run(self, function: Callable, *inputs: ArrayLike):
        arrays = [put_rows(self.mesh, np.asarray(x)) for x in inputs]
        program = self._compiled.get(function, self.params, arrays)
        return program(self.params, *arrays)

    def _in_batches(
        self,
        function: Callable,
        inputs: Sequence[np.ndarray],
        seed: int | Sequence[int],
        first_row: int,
        options: SampleOptions | EditOptions,
    ) -> Any:
        key = noise_key(seed)
        first_row = check_seed("first_row", first_row)
        most = options.batch_size
        return self._compiled.run(
            function, self.params, inputs, key, first_row, most=most, options=options
        )


def _without_student(options: SampleOptions, flow: str, of: FlowTok) -> SampleOptions:
    """Returns options of a flow; its teacher's where the weights lack its student."""
    if options.solver != AVERAGE:
        return options
    student = flow_group(flow, options.solver)
    if student in of.params or not has_group(flow, of.params):
        return options
    teacher = teacher_options(of.losses, student)
    logging.info("%s: no %s fits it; it runs with %s", flow, student, teacher)
    return options._replace(**teacher)
