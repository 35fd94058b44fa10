"""The end of a run: what it is worth on pictures held out, what looks weak, and what
would help.

Generated scenes are measured by their oracle (eval/demo.py), pictures of any other
source by the parts of an evaluation, whose files are in EVAL of the workdir.
"""

import io
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from flowtok_jax.data.centre import open_images
from flowtok_jax.data.loader import (
    SAID,
    caption_options,
    count_captions,
    evaluated_source,
    open_evaluation,
)
from flowtok_jax.data.records import Records
from flowtok_jax.data.source_strings import parse_sources
from flowtok_jax.data.vocabulary import VOCABULARY
from flowtok_jax.eval.demo import are_told_scenes, summarize_demo
from flowtok_jax.eval.evaluate import run_part
from flowtok_jax.eval.parts import PARTS, PartMaker
from flowtok_jax.eval.previews import Pictures
from flowtok_jax.models.build import find_provider, has_group
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.cli import wrap_text
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, read_bytes, read_json
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.train.summary import EVALUATION
from flowtok_jax.weights.place import Weights
from flowtok_jax.weights.workdir import CONFIG, SAMPLES, read_vocabulary

EVAL = "eval"  # folder of a workdir
PICTURES = {"t2i": "text_to_image", "i2t": "image_to_text"}
PICTURES["tokenizer"] = "reconstructions"
RETRIEVED = ("pixels", "chance", "pixels_reconstructed")  # ends of metrics' names
SCENES_KEY = "tokenizer_psnr_db"  # of a summary of generated scenes
LOW_PSNR_DB = 25.0  # below it small things are lost
LOW_CEILING = 0.8  # of the tokenizers' own copies
FAR = 0.5  # of the way from chance to the ceiling
FEW = 50  # pictures, whose numbers are rough


class Score(NamedTuple):
    """A number from 0 to 1 between chance and what the tokenizers alone reach."""

    value: float
    chance: float
    ceiling: float

    @property
    def is_weak(self) -> bool:
        """True where less than half of what is possible was learned."""
        return self.value - self.chance < FAR * (self.ceiling - self.chance)


def check_ending(config: ConfigDict) -> None:
    """Refuses data that the end of the run could not measure.

    Raises:
        UserError: where there are no images.
    """
    if any(has_group(part, config.stages) for part in PARTS):
        try:
            _open_pictures(config)
        except UserError as error:
            raise UserError(
                f"eval.after_training: {error}; give images as --config.data.eval, or "
                "--config.eval.after_training=False"
            ) from error


def _open_pictures(config: ConfigDict) -> Records:
    spec, side = evaluated_source(config)
    return open_images(
        spec,
        key="data.eval" if config.data.eval else "data.train",
        image_size=config.tokenizer.image_size,
        seed=config.train.seed,
        cache=config.data.cache,
        captions=caption_options(config),
        side=side,
    )


def is_measured(summary: Mapping[str, Any]) -> bool:
    """Returns whether a summary has what `measure_ending` finds."""
    return EVALUATION in summary or SCENES_KEY in summary


def measure_ending(
    config: ConfigDict, workdir: Place, trained: Collection[str]
) -> tuple[dict[str, Any], Pictures]:
    """Measures a run; every process calls it.

    Args:
        trained: the run's finished stages.

    Returns:
        Values for the summary, in process 0, and pictures by name; nothing for stages
        that cannot be measured.
    """
    if are_told_scenes(config):
        return summarize_demo(config, workdir, trained)
    names = [name for name in PARTS if has_group(name, trained)]
    if not names:
        return {}, {}
    count = len(_open_pictures(config))
    measured = config.copy_and_resolve_references()
    # Judges of pictures take longer than all the rest, and --mode=eval has them.
    measured.eval.update({"weights": "", "protocol": "", "captions": ""})
    measured.eval.fid.reference = ""
    measured.eval.samples = min(config.eval.samples, count)
    folder = workdir / EVAL
    mesh = make_mesh(**config.mesh)
    maker = PartMaker(measured, Weights(workdir), folder, mesh)
    # Chunks are what is said to be done, so they are small.
    size = min(config.eval.chunk, config.sample.batch_size)
    results = [run_part(maker.make(name), folder, size) for name in names]
    if not processes.is_first():
        return {}, {}
    values = {
        "data": maker.real.spec,
        "pictures": maker.real.count,
        "rejected": maker.real.rejected,
        "seen": not config.data.eval and evaluated_source(config)[1] is None,
        "metrics": {r["part"]: r["metrics"] for r in results},
        "not_measured": {r["part"]: r["not_measured"] for r in results},
    }
    shown = {
        PICTURES[r["part"]]: _read_png(folder / f"{r['name']}.png") for r in results
    }
    return {EVALUATION: values}, shown


def _read_png(path: Place) -> np.ndarray:
    with Image.open(io.BytesIO(read_bytes(path))) as image:
        return np.asarray(image.convert("RGB"))


def _pick(metrics: Mapping[str, Any], name: str) -> float | None:
    """Returns the metric of a name, which may end in numbers of samples."""
    pattern = re.compile(rf"{name}(_n\d+)?(_of\d+)?")
    return next((v for k, v in metrics.items() if pattern.fullmatch(k)), None)


def _score(
    metrics: Mapping[str, Any], value: str, chance: str, ceiling: str
) -> Score | None:
    names = (value, chance, ceiling)
    found = [_pick(metrics, name) if name else 0.0 for name in names]
    return None if None in found else Score(*found)


class RunScores(NamedTuple):
    """The numbers of a run that its end is judged by; None for those not measured."""

    psnr_db: float | None
    drawn: Score | None
    drawn_five: Score | None
    described: Score | None
    exact: Score | None
    are_scenes: bool

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> "RunScores":
        """Reads them from a summary, of generated scenes or of other pictures."""
        if EVALUATION not in summary:
            drawn = ("t2i_attribute_accuracy", "", "tokenizer_accuracy")
            said = ("i2t_exact_match", "", "text_tokenizer_exact_match")
            scores = (_score(summary, *drawn), None, None, _score(summary, *said))
            return cls(summary.get(SCENES_KEY), *scores, True)
        parts = summary[EVALUATION]["metrics"]
        drawn, said = (parts.get(part, {}) for part in ("t2i", "i2t"))
        found = [
            _score(drawn, *(f"retrieval_top{k}_{end}" for end in RETRIEVED))
            for k in (1, 5)
        ]
        words = ("word_f1", "word_f1_chance", "word_f1_text_tokenizer")
        exact = ("exact_match", "", "exact_match_text_tokenizer")
        found += [_score(said, *words), _score(said, *exact)]
        psnr_db = _pick(parts.get("tokenizer", {}), "psnr_db")
        return cls(psnr_db, *found, False)


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"


def _score_lines(scores: RunScores) -> Iterator[str]:
    """Yields what the run can do, a sentence for each thing measured."""
    if scores.psnr_db is not None:
        yield f"copied: the tokenizer's copies have a PSNR of {scores.psnr_db:.1f} dB"
    if (drawn := scores.drawn) is not None and scores.are_scenes:
        yield (
            f"drawn: {_percent(drawn.value)} with every shape, colour and place right "
            f"(the tokenizer's copies: {_percent(drawn.ceiling)})"
        )
    elif drawn is not None:
        five = scores.drawn_five
        yield (
            f"drawn: {_percent(drawn.value)} are nearest to the picture whose caption "
            f"they were drawn from, {_percent(five.value)} have it among the five "
            f"nearest (the tokenizer's copies: {_percent(drawn.ceiling)} and "
            f"{_percent(five.ceiling)}; chance: {_percent(drawn.chance)} and "
            f"{_percent(five.chance)})"
        )
    if (said := scores.described) is not None:
        yield (
            f"described: word F1 {said.value:.2f} (captions of other pictures: "
            f"{said.chance:.2f}; the text tokenizer alone: {said.ceiling:.2f})"
        )
    if (exact := scores.exact) is not None:
        yield (
            f"described rightly in every word: {_percent(exact.value)} (the text "
            f"tokenizer alone: {_percent(exact.ceiling)})"
        )


def _more_steps(config: ConfigDict, stage: str) -> str:
    """Returns the flag that doubles the steps of a stage."""
    stage = find_provider(stage, config.stages)
    number = 2 * for_stage(config, stage).train.num_steps
    own = stage in config.per_stage and "train" in config.per_stage[stage]
    if own and "num_steps" in config.per_stage[stage].train:
        return f"--config.per_stage.{stage}.train.num_steps={number}"
    return f"--config.train.num_steps={number}"


def _new_run(config: ConfigDict, stage: str) -> str:
    """Returns the flag that gives a stage of a new run about twice the steps."""
    if config.own.minutes:  # which choose the steps of all stages
        return f"--minutes={2 * config.own.minutes:g}"
    return _more_steps(config, stage)


def find_weak(config: ConfigDict, scores: RunScores) -> list[str]:
    """Names what looks weak in a run's numbers, each with what would help."""
    found = []
    if scores.psnr_db is not None and scores.psnr_db < LOW_PSNR_DB:
        found.append(
            f"the tokenizer: below {LOW_PSNR_DB:.0f} dB small things blur, and nothing "
            "drawn can be sharper. In a new --workdir, as all the rest learns from its "
            f"tokens: {_new_run(config, 'tokenizer')}, or more of latent.tokens"
        )
    drawn = scores.drawn
    if drawn is not None and drawn.ceiling < LOW_CEILING:
        found.append(
            f"the tokenizer: {_percent(1 - drawn.ceiling)} of its own copies are wrong "
            "by the same measure; train it further first"
        )
    elif drawn is not None and drawn.is_weak:
        found.append(
            f"pictures drawn are far below the tokenizer's copies, which have "
            f"{_percent(drawn.ceiling)}: the flow has learned too little. The same "
            f"command goes on with {_more_steps(config, 't2i')}"
        )
    said = scores.described or scores.exact
    if scores.exact is not None and scores.exact.ceiling < LOW_CEILING:
        found.append(
            f"the text tokenizer gives back {_percent(scores.exact.ceiling)} of the "
            "captions in every word: in a new --workdir, "
            f"{_new_run(config, 'text_tokenizer')}"
        )
    elif said is not None and said.is_weak:
        found.append(
            "captions are far below what the text tokenizer can say. The same command "
            f"goes on with {_more_steps(config, 'i2t')}"
        )
    return found


def _find_limits(
    config: ConfigDict, scores: RunScores, evaluation: Mapping[str, Any]
) -> list[str]:
    """Names what the numbers themselves rest on badly.

    Args:
        evaluation: the summary's, empty of generated scenes.
    """
    found = []
    if evaluation.get("seen"):
        found.append(
            "these numbers are of pictures that training saw, and flatter: a new run "
            "with --config.data.held_out=0.05 keeps some out"
        )
    if 0 < evaluation.get("pictures", 0) < FEW:
        found.append(
            f"these numbers are of {evaluation['pictures']} pictures only, and rough"
        )
    if not scores.are_scenes and config.text.weights == "random":
        tower = "tokenizers' text tower" if config.clip.trained_along else "text tower"
        found.append(
            f"the {tower} was never trained: CLIP's, by --checkpoint, knows words"
        )
    return found


def _find_weak_captions(config: ConfigDict, workdir: Place) -> Iterator[str]:
    """Yields what the vocabulary and the context lose of the captions."""
    path = workdir / VOCABULARY
    tokens = config.latent.tokens
    vocabulary = read_vocabulary(path, tokens, read_json(workdir / CONFIG))
    counts = count_captions(config, vocabulary)
    if counts.cut_share > SAID:
        yield (
            f"{_percent(counts.cut_share)} of the captions are longer than "
            f"{tokens} tokens, and lose their end: shorter captions, or a new run with "
            "more of latent.tokens"
        )
    if counts.unknown_share > SAID:
        yield (
            f"the vocabulary lacks {_percent(counts.unknown_share)} of the captions' "
            "tokens: a new run with more of clip.vocab_size"
        )


def describe_ending(
    config: ConfigDict, summary: Mapping[str, Any], workdir: Place
) -> list[str]:
    """Returns lines of 80 columns: numbers, what looks weak, how to use the model.

    Commands may be longer, to be copied whole.
    """
    lines = []
    evaluation = summary.get(EVALUATION, {})
    if is_measured(summary):
        scores = RunScores.of(summary)
        spec = evaluation.get("data", "scenes held out of training")
        count = evaluation.get("pictures", summary.get("samples"))
        rejected = sum(evaluation.get("rejected", {}).values())
        without = f", without {rejected} that cannot be used" if rejected else ""
        lines += ["", f"On {count} pictures of {spec}{without}:"]
        for text in _score_lines(scores):
            lines += wrap_text(text, "  - ")
        weak = find_weak(config, scores) + _find_limits(config, scores, evaluation)
        weak += _find_weak_captions(config, workdir)
        lines += ["", "What looks weak, and what would help:" if weak else ""]
        for text in weak:
            lines += wrap_text(text, "  - ")
    return [*lines, *_usage(config, summary, workdir)]


def _usage(
    config: ConfigDict, summary: Mapping[str, Any], workdir: Place
) -> Iterator[str]:
    """Yields the commands that use what was trained."""
    main = f"python -m flowtok_jax.main --checkpoint={shlex.quote(str(workdir))}"
    trained = summary["params_sha256"]
    if has_group("t2i", trained):
        prompt = "a caption"
        if is_measured(summary):
            prompt = open_evaluation(config)[0]["caption"]
        yield from ("", "To draw:", f"  {main} --mode=sample \\")
        yield f"    --prompt={shlex.quote(prompt)}"
    if has_group("i2t", trained):
        images = workdir / SAMPLES / "0001" / "0*.png"
        source = parse_sources(config.data.eval or config.data.train)[0]
        if source.kind == "folder":
            images = source.arguments
        yield from ("", "To describe:", f"  {main} --mode=caption \\")
        yield f"    --images={shlex.quote(str(images))}"
