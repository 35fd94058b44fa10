"""Survey of a set of captioned pictures, and the sizes and steps that suit it.

configs/own.py asks for it by `own.size`. What is chosen is stored with the run: the
same command goes on with the same sizes and steps, whatever the clock says then.
"""

import textwrap
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.data.loader import SAID
from flowtok_jax.data.survey import Survey, look_at_data
from flowtok_jax.data.vocabulary import SPECIAL_TOKENS
from flowtok_jax.models.sizes import SIZES
from flowtok_jax.modes.pretokenize import why_from_pixels
from flowtok_jax.perf import work
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, flatten, read_json
from flowtok_jax.tasks import TASKS
from flowtok_jax.weights.workdir import CONFIG

AUTO = "auto"
MANY_PICTURES = 100_000  # from here on `large`, on an accelerator
CONTEXTS = (16, 32, 64, 96, 128)  # tokens of text and image; the paper has 77
CHANNELS = 16  # of a token, as in the paper
# Of an image by size: tokens have more channels where captions need few of them.
LEAST_NUMBERS = {"small": 512, "medium": 1024, "large": 1024}
HELD_OUT_LEAST = 16  # pictures; fewer say little
HELD_OUT_MOST = 0.2  # share
OTHER_SHARE = 0.1  # of the minutes: previews, checkpoints, numbers at the end
LEAST_STEPS = 20
SHOWN = 62  # characters of a caption; with its name 80 columns hold them


class StagePlan(NamedTuple):
    """Length of a stage of own.py.

    Attributes:
        rows: of a step.
        epochs: over the pictures, between `least` and `most` steps.
        share: of the time that --minutes gives.
        scarce_share: the most of the time where that is too little for `least` steps:
            nothing can be learned of a tokenizer that has learned nothing.
    """

    rows: int
    epochs: int
    least: int
    most: int
    share: float
    scarce_share: float

    def weigh(self, seconds: float, left: float) -> float:
        """Returns the weight of a stage in a time, by the seconds that a step takes."""
        return min(max(self.share, self.least * seconds / left), self.scarce_share)


PLANS_OF_STAGES = {
    "tokenizer": StagePlan(32, 32, 3000, 200_000, 0.21, 0.6),
    "text_tokenizer": StagePlan(64, 30, 1000, 20_000, 0.02, 0.06),
    "t2i": StagePlan(64, 216, 5000, 400_000, 0.46, 0.46),
    "i2t": StagePlan(64, 162, 4000, 400_000, 0.31, 0.31),
}


def fit_config(config: ConfigDict, workdir: Place, given: Collection[str]) -> list[str]:
    """Sets the sizes and steps of a config by its data, or as a run began with them.

    Args:
        given: keys of the command line, which are never changed.

    Returns:
        A dozen lines for the user, or one where the run goes on.
    """
    begun = time.monotonic()
    given = set(given)
    if config.init_from:  # its text tower reads the captions, in its own sizes
        sizes = set(config.clip) - {"trained_along"}
        given |= {"latent.tokens", *(f"clip.{key}" for key in sizes)}
        _set(config, {"text.weights": "", "clip.trained_along": False}, given)
    if why_from_pixels(config, workdir):
        _set(config, {"data.encode_first": False}, given)
    if (workdir / CONFIG).is_file():
        stored = flatten(read_json(workdir / CONFIG))
        _set(config, {k: stored[k] for k in _chosen_keys(config, stored)}, given)
        return [f"going on with the sizes and steps that {workdir / CONFIG} has"]
    if config.own.minutes and jax.process_count() > 1:
        raise UserError(
            "--minutes is for one process, each would measure other steps; expected "
            "--config.per_stage.STAGE.train.num_steps=N"
        )
    found = look_at_data(config)
    size = config.own.size
    if size == AUTO:
        size = _choose_size(found.usable)
    _set(config, {"own.size": size} | flatten(SIZES[size]), given)
    _set(config, _choose_for_captions(found), given)
    channels = max(CHANNELS, LEAST_NUMBERS[size] // config.latent.tokens)
    _set(config, {"latent.channels": channels}, given)
    _set(config, _choose_for_device(), given)
    if not config.data.eval:
        _set(config, {"data.held_out": _share(found.usable, config)}, given)
    costs = _plan_steps(config, found.usable, given, begun)
    return list(_describe(config, found, costs, workdir))


def _choose_size(pictures: int) -> str:
    if jax.default_backend() == "cpu":
        return "small"
    return "large" if pictures >= MANY_PICTURES else "medium"


def _choose_for_captions(found: Survey) -> Mapping[str, Any]:
    """Chooses the context and the vocabulary; few captions may be cut."""
    longest = np.quantile(found.lengths, 1 - SAID)
    fitting = [c for c in CONTEXTS if c >= longest]
    return {
        "latent.tokens": (fitting or CONTEXTS[-1:])[0],
        # Even rows of the embedding; training may see a few words more.
        "clip.vocab_size": -(-(found.words + len(SPECIAL_TOKENS)) // 64) * 64,
    }


def _choose_for_device() -> Mapping[str, Any]:
    on_cpu = jax.default_backend() == "cpu"
    return {
        "compute.dtype": "float32" if on_cpu else "bfloat16",
        "compute.layout": "rows" if on_cpu else "batch",
        "train.steps_per_call": 10,
    }


def _share(pictures: int, config: ConfigDict) -> float:
    """Returns the share held out: of few pictures a larger one."""
    share = max(config.data.held_out, HELD_OUT_LEAST / max(pictures, 1))
    return round(min(share, HELD_OUT_MOST), 4)


class StageCost(NamedTuple):
    """Time and memory of a step of a stage, measured here.

    Attributes:
        compiling: seconds until its program was there.
    """

    seconds: float
    compiling: float
    gib: float


def _plan_steps(
    config: ConfigDict, pictures: int, given: Collection[str], begun: float
) -> dict[str, StageCost]:
    """Sets batch and steps of each stage; measures what a step takes.

    Raises:
        UserError: where the minutes are too few to learn anything.
    """
    costs = {}
    plans = {stage: PLANS_OF_STAGES[stage] for stage in config.stages}
    for stage, plan in plans.items():
        _set(config, {f"per_stage.{stage}.train.batch_size": plan.rows}, given)
        steps = plan.epochs * pictures // plan.rows
        steps = min(max(steps, plan.least), plan.most)
        _set(config, {f"per_stage.{stage}.train.num_steps": steps}, given)
    for stage in plans:
        costs[stage] = _measure(config, stage)
    if not config.own.minutes:
        return costs
    left = 60 * config.own.minutes - (time.monotonic() - begun)
    # The run compiles again.
    left -= sum(cost.compiling for cost in costs.values())
    left *= 1 - OTHER_SHARE
    weights = {s: plan.weigh(costs[s].seconds, left) for s, plan in plans.items()}
    for stage, weight in weights.items():
        share = weight / sum(weights.values())
        steps = int(left * share / costs[stage].seconds)
        if steps < LEAST_STEPS:
            raise UserError(
                f"own.minutes is {config.own.minutes:g}, which leaves {max(steps, 0)} "
                f"steps of {stage}, {costs[stage].seconds:.1f} s each; expected more "
                "minutes, or configs/own.py:small"
            )
        _set(config, {f"per_stage.{stage}.train.num_steps": steps}, given)
    return costs


def _measure(config: ConfigDict, stage: str) -> StageCost:
    """Times the training step of one stage on numbers made up."""
    own = for_stage(config, stage)
    own.stages = (stage,)
    if own.data.encode_first and TASKS[stage].encodes_images(own):
        own.data.train = (
            "latents:*.arrayrecord"  # shapes and dtypes are all that counts
        )
    step = work.training_work(
        own, own.train.batch_size, jax.devices(), work.WeightMaker(None)
    )
    timed = {"repeats": 3, "warmup": 1, "devices": jax.device_count()}
    result = work.time_work(step, **timed, profiles=False)
    seconds = result["seconds"]["p50"]
    return StageCost(seconds, result["compile_seconds"], step.program_gib)


def _set(config: ConfigDict, values: Mapping[str, Any], given: Collection[str]) -> None:
    """Sets values of keys, or of stages' own, that the command line does not."""
    with config.unlocked():
        for key, value in values.items():
            shared = key.split(".", 2)[2] if key.startswith("per_stage.") else key
            if key in given or shared in given:
                continue
            *path, last = key.split(".")
            section = config
            for name in path:
                if name not in section:
                    section[name] = ConfigDict()
                section = section[name]
            section[last] = value


def _chosen_keys(config: ConfigDict, stored: Mapping[str, Any]) -> Iterator[str]:
    """Yields the keys that `fit_config` sets."""
    chosen = flatten(SIZES["small"]).keys()
    chosen |= {"own.size", "latent.tokens", "latent.channels", "clip.vocab_size"}
    chosen |= {"compute.dtype", "compute.layout"}
    chosen |= {"train.steps_per_call", "data.held_out"}
    for stage in config.stages:
        chosen |= {f"per_stage.{stage}.train.{k}" for k in ("num_steps", "batch_size")}
    yield from (key for key in sorted(chosen) if key in stored)


def _describe(
    config: ConfigDict, found: Survey, costs: Mapping[str, StageCost], workdir: Place
) -> Iterator[str]:
    """Yields what was found and chosen, a line each."""
    yield _line("pictures", _describe_pictures(config, found))
    if found.copies:
        # Held out and trained on at once, they make numbers better than they are.
        yield _line("copies", f"{found.copies} pictures are the same file as another")
    for name, caption in zip(
        ("captions", "", ""), dict.fromkeys(found.captions), strict=False
    ):
        yield _line(name, textwrap.shorten(caption, SHOWN))
    cut = (found.lengths > config.latent.tokens).mean()
    yield _line(
        "words",
        f"{found.words:,}; {found.lengths.min()} to {found.lengths.max()} tokens a "
        f"caption, {100 * cut:.1f} % cut at {config.latent.tokens}",
    )
    yield _line(
        "chosen",
        f"{config.own.size}: {config.tokenizer.image_size} px, {config.latent.tokens} "
        f"tokens of {config.latent.channels}, a vocabulary of "
        f"{config.clip.vocab_size:,} at most",
    )
    sides = (config.tokenizer.encoder, config.tokenizer.decoder)
    yield _line(
        "width x blocks",
        f"tokenizer {' + '.join(map(_size, sides))}, flow {_size(config.dit)}",
    )
    if config.text.weights == "random":
        tower = "CLIP's architecture at random"
    else:
        tower = f"that of {config.init_from}"
    if config.clip.trained_along:
        tower += "; t2i trains its own along"
    yield _line("text tower", f"{tower}, {_size(config.clip)}")
    total = 0.0
    for stage, cost in costs.items():
        own = for_stage(config, stage).train
        minutes = own.num_steps * cost.seconds / 60
        total += minutes
        yield _line(
            stage,
            f"{own.num_steps} steps of {own.batch_size}, about {minutes:.0f} minutes, "
            f"{cost.gib:.2f} GiB",
        )
    yield _line("together", f"about {total:.0f} minutes; everything in {workdir}")


def _describe_pictures(config: ConfigDict, found: Survey) -> str:
    held_out = round(config.data.held_out * found.pictures)
    looked_at = config.data.eval or f"about {held_out:,} held out"
    text = f"{found.pictures:,}, {looked_at}"
    if found.sides:
        widths, heights = (np.array(side) for side in zip(*found.sides, strict=True))
        text += (
            f"; {widths.min()} x {heights.min()} to {widths.max()} x {heights.max()} "
            "pixels"
        )
    if found.broken:
        text += f"; {found.broken} of {len(found.sides) + found.broken} broken"
    return text


def _size(net: ConfigDict) -> str:
    return f"{net.width} x {net.depth}"


def _line(name: str, text: str) -> str:
    return f"{name:<15} {text}"
