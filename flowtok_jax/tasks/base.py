"""The description of a training stage, and what the tasks' losses share.

A task is one file: its loss, the group of networks that it trains, the frozen groups
that it needs, what a preview shows. A loss maps (trained, frozen, batch, key) to a
value and named scalars. `trained` holds the parameters of the task's own networks;
`frozen` those of the groups it needs, by role. With `parts` above 1 the trained network
(of t2i its DiT) sees the rows part by part, see tasks/accumulate.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from flowtok_jax.array_types import Image, Key, Params, TextFeatures, Tokens
from flowtok_jax.flow import paths
from flowtok_jax.models.build import Nets
from flowtok_jax.models.lora import ADAPTED, LoraOptions
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import losses
from flowtok_jax.tasks.accumulate import accumulate
from flowtok_jax.tasks.state import Trainer

Batch = dict[str, Array]
Scalars = dict[str, Float[Array, ""]]
Loss = Callable[..., tuple[Float[Array, ""], Scalars]]
CHOICES = ("mean", "sample")  # of a posterior


@runtime_checkable
class PreviewModel(Protocol):
    """The part of pipeline.FlowTok that a preview may use."""

    nets: Nets
    params: Params  # by group
    vocabulary: Any

    def encode_image(self, images): ...

    def decode_image(self, tokens, captions): ...

    def reconstruct_text(self, prompts): ...

    def text_to_image(self, prompts, seed=0, first_row=0, **options): ...

    def image_to_text(self, images, seed=0, first_row=0, **options): ...


class Preview(NamedTuple):
    """Images or captions that a task made of examples; eval/previews.py judges them.

    Attributes:
        name: name of the picture.
        images: floats [b, s, s, 3] drawn for the examples' captions.
        captions: texts said of images, or copies of the examples' own.
        described: the images of the captions, uint8 [b, s, s, 3].
        are_copies: whether images or captions should equal the examples' own, and not
            only mean the same.
        scalars: numbers of the task's own, by their names in metrics.jsonl.
    """

    name: str
    images: np.ndarray | None = None
    captions: Sequence[str] | None = None
    described: np.ndarray | None = None
    are_copies: bool = False
    scalars: Mapping[str, float] = {}


class Task(NamedTuple):
    """One training stage.

    Attributes:
        name: name of the stage, of its section in config.loss, and of the group of
            parameters that it trains, in checkpoints/ and in weights.
        networks: the networks of models/build.py whose parameters form the group.
        frozen: role in the loss -> group whose parameters are only used.
        loss: called with `nets`, `parts` and the keys of config.loss[TASK].
        preview: makes something, or a list, of (model with the trained weights,
            examples).
        passes: forward passes of frozen networks in a step, for counting FLOPs:
            networks' names, or the tokenizer's `encoder` or `decoder`.
        more_passes: the same a row by the options of config.loss[TASK], beside
            `passes`; of a trained network how often more a row goes forth and back.
        draws: whether previews have images to measure.
        copies: whether these images should equal the examples' own.
        contents: contents of the data that will do, "image" or "moments" (latents).
        reads_contents: whether the loss reads them, by the options of
            config.loss[TASK]; otherwise no image is decoded, and batches have none.
        directions: the directions of sampling.py that the group enables.
        make_trainer: builds the state and the step; None for one optimiser.
        judges: names of the frozen networks of eval.weights that the loss needs, each
            also its role.
        trains_tower: whether it trains a text tower too where clip.trained_along asks.
        goes_on: whether training has to start from weights of the task's own group.
        init: makes the first parameters of (nets, parameters by role or group, key)
            where they are copies of others'; None for random ones.
        begins_from: groups that `init` takes, where the weights to start from have them
            and not the task's own.
        lora: options of the adapters that it trains over its networks, which are then
            a frozen group like the others; None for the networks themselves.
    """

    name: str
    networks: tuple[str, ...]
    frozen: Mapping[str, str]
    loss: Loss
    preview: Callable[[PreviewModel, Any], Preview | list[Preview]]
    passes: tuple[str, ...]
    more_passes: Callable[[Mapping[str, Any]], Mapping[str, float]] = lambda options: {}
    draws: bool = False  # metrics of images are loaded before the stage begins
    copies: bool = False
    contents: tuple[str, ...] = ("image", "moments")
    reads_contents: Callable[[Mapping[str, Any]], bool] = lambda options: True
    directions: tuple[str, ...] = ()
    make_trainer: Callable[["Task", ConfigDict, Nets], Trainer] | None = None
    judges: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
    trains_tower: bool = False
    goes_on: Callable[[ConfigDict], bool] = lambda config: False
    init: Callable[[Nets, Params, Key], dict[str, Params] | None] | None = None
    begins_from: tuple[str, ...] = ()
    lora: LoraOptions | None = None

    @property
    def group(self) -> str:
        """Name of the stage without adapters: of its networks' group and its loss."""
        return self.name if self.lora is None else self.name.removesuffix(ADAPTED)

    def needs_images(self, config: ConfigDict) -> bool:
        """Tells whether the batches of a run need images or their moments."""
        return self.reads_contents(config.loss[self.group].to_dict())

    def encodes_images(self, config: ConfigDict) -> bool:
        """Tells whether a run would encode the images of each step."""
        return "encoder" in self.passes and self.needs_images(config)


def preview_nets(config: ConfigDict, task: Task) -> tuple[str, ...]:
    """Returns the names of the networks of eval.weights that judge previews."""
    asked = {
        "inception": task.draws and config.log.preview_fid,
        "lpips": task.copies and config.log.preview_lpips,
    }
    return tuple(name for name in asked if asked[name])


def text_features(
    nets: Nets, frozen: Params, batch: Batch, reader: Params | None = None
) -> TextFeatures:
    """Computes the features of the batch's captions by the frozen tower.

    Args:
        reader: the group that reads them; a tower that it has goes before.
    """
    towers = reader if reader and "clip" in reader else frozen["clip"]
    return nets.clip.apply({"params": towers["clip"]}, batch["caption_ids"])


def to_floats(image: Array) -> Image:
    """Returns an image in [0, 1]; one of bytes is divided by 255."""
    # Images travel to the device as bytes, a quarter of their floats.
    is_bytes = image.dtype == jnp.uint8
    return image.astype(jnp.float32) / 255 if is_bytes else image


def image_posterior(nets: Nets, params: Params | None, batch: Batch) -> Posterior:
    """Computes the posterior of the image tokens, from stored moments if there are any.

    Args:
        params: the tokenizer's; not used where the batch has moments.
    """
    if "moments" in batch:
        return Posterior.from_moments(batch["moments"], clip=True)
    image = to_floats(batch["image"])
    return nets.tokenizer.apply({"params": params}, image, method="encode")


def project(
    nets: Nets, params: Params, text_feats: TextFeatures, key: Key | None
) -> Posterior:
    """Computes the posterior of the text tokens, with dropout where there is a key."""
    return nets.projector.apply(
        {"params": params},
        text_feats,
        deterministic=key is None,
        rngs=None if key is None else {"dropout": key},
    )


def draw_noise(nets: Nets, key: Key, rows: int) -> Tokens:
    """Draws the noise of a posterior's samples, for the whole batch at once."""
    return jax.random.normal(key, (rows, nets.dit.tokens, nets.dit.channels))


def choose_tokens(posterior: Posterior, key: Key, how: str, name: str) -> Tokens:
    """Returns a posterior's mean or a sample.

    Args:
        how: "mean" or "sample".
        name: of the config's key that says so.

    Raises:
        UserError: for anything else.
    """
    if how not in CHOICES:
        raise UserError(f"{name} is {how!r}; expected one of {CHOICES}")
    return posterior.mean if how == "mean" else posterior.sample(key)


def latent_scalars(prefix: str, posterior: Posterior) -> Scalars:
    """Computes the spread of a posterior: a collapsed one has a small sigma."""
    return {
        f"{prefix}/sigma": posterior.std.mean(),
        f"{prefix}/mean_std": posterior.mean.std(),
    }


def flow_loss(
    nets: Nets,
    dit: Params,
    z_src: Tokens,
    z_tgt: Tokens,
    key: Key,
    *,
    null_rate: float,
    time_location: float,
    parts: int,
) -> Float[Array, ""]:
    """Computes the velocity loss, mean over the batch, at random times.

    A share `null_rate` of the rows is null rows, whose targets come from one another.
    The DiT sees the rows in `parts`, one after the other.
    """
    points = draw_points(
        z_src, z_tgt, key, null_rate=null_rate, time_location=time_location
    )
    return points_loss(nets.dit, dit, points, key, parts)[0]


class Points(NamedTuple):
    """Points of straight paths, at which a network learns the velocity.

    Attributes:
        path: the points z_t, and the velocity there: gradients reach a trained source
            through them.
        where: what the network sees beside: times, null rows, and whatever it takes
            more.
    """

    path: tuple[Tokens, Tokens]
    where: tuple[Array, ...]


def draw_points(
    z_src: Tokens, z_tgt: Tokens, key: Key, *, null_rate: float, time_location: float
) -> Points:
    """Draws a time for each row, and null rows, whose targets come from one another.

    Null rows couple the batch, so they are drawn before it is parted.
    """
    keys = dict(zip(("time", "null"), jax.random.split(key), strict=True))
    t = paths.sample_time(keys["time"], z_src.shape[0], time_location)
    chosen = jax.random.bernoulli(keys["null"], null_rate, t.shape)
    z_tgt, null = paths.null_row_targets(z_tgt, chosen)
    return Points(paths.straight_path(z_src, z_tgt, t), (t, null))


def points_loss(
    net: nn.Module,
    params: Params,
    points: Points,
    key: Key,
    parts: int,
    weights: Float[Array, " b"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, " b"]]:
    """Computes a network's velocity loss at points, mean over rows, and each row's.

    Args:
        parts: parts of the rows that the network sees one after the other.
        weights: of the rows in the mean; None for 1.
    """

    def rows_loss(params, path, rest, key):
        where, weights = rest
        predicted = net.apply({"params": params}, path[0], *where)
        errors = losses.velocity_loss(predicted, path[1])
        weighted = errors if weights is None else weights * errors
        return weighted.mean(), errors

    rest = points.where, weights
    return accumulate(rows_loss, parts)(params, points.path, rest, key)
