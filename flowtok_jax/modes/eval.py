"""--mode=eval: what trained weights are worth, with the whole protocol beside it.

    python -m flowtok_jax.main --mode=eval --workdir=runs/demo
    python -m flowtok_jax.main --mode=eval --config=configs/eval.py \\
        --checkpoint=weights/xl --workdir=runs/xl --config.eval.protocol=coco_fid_30k \\
        --config.eval.captions=captions_val2014.json --config.eval.samples=30000 \\
        --config.eval.weights=weights/metrics --config.eval.fid.reference=coco.npz

Each part (t2i, i2t, tokenizer) writes to WORKDIR/eval what eval/evaluate.py says.
"""

import functools
import logging
import signal
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flowtok_jax.data.transforms import Filters, ImageTransform
from flowtok_jax.data.vocabulary import VOCABULARY, Vocabulary
from flowtok_jax.eval.captioning import CaptionedImages
from flowtok_jax.eval.evaluate import digest, run_part, show
from flowtok_jax.eval.feature_metrics import FeatureMetrics
from flowtok_jax.eval.features import Extractor, check_resize
from flowtok_jax.eval.i2t import ImageToText
from flowtok_jax.eval.nets import RANDOM, MetricNet, load_metric_net
from flowtok_jax.eval.parts import NO_WEIGHTS, Part
from flowtok_jax.eval.previews import make_extractor
from flowtok_jax.eval.protocols import (
    PROTOCOLS,
    digest_of,
    metric_suffix,
    read_prompts,
)
from flowtok_jax.eval.real import RealImages
from flowtok_jax.eval.references import (
    Reference,
    check_fits,
    make_reference,
    read_reference,
    write_reference,
)
from flowtok_jax.eval.t2i import TextToImage
from flowtok_jax.eval.tokenizer import Reconstruction
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.modes.sample import random_tower_note
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.cli import join_processes
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, to_place
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.sampling import SampleOptions
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.weights import pretrained
from flowtok_jax.weights.place import groups_of, steps_of
from flowtok_jax.weights.workdir import read_config

EVAL = "eval"
# The groups of parameters that a part's numbers depend on.
GROUPS = {
    "t2i": ("clip", "tokenizer", "t2i"),
    "i2t": ("tokenizer", "i2t", "text_tokenizer"),
    "tokenizer": ("clip", "tokenizer"),
}
PARTS = tuple(GROUPS)


def run(arguments: Arguments) -> int:
    """Measures the weights."""
    place, config = arguments.weights(), arguments.weights_config()
    config = read_config(place) if config is None else config
    if "eval" not in config or "protocol" not in config.eval:
        raise UserError(
            f"the config stored in {place} has no keys of --mode=eval; give a config "
            "beside it: --config=configs/eval.py, or the one it was trained with"
        )
    join_processes(arguments.flags)
    # Nothing has to be saved; among several processes JAX would keep it to itself.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    evaluate(config, place, arguments.output())
    if note := random_tower_note(place):
        logging.info(note)
    return 0


def evaluate(config: ConfigDict, place: Place, workdir: Place) -> list[dict[str, Any]]:
    """Evaluates the parts that the config names; every process of a run calls it.

    Args:
        place: of the weights: a run's workdir or a directory of pretrained ones.
        workdir: where `eval` lies.

    Returns:
        In process 0, what stands in the JSON files.

    Raises:
        UserError: for what cannot be, before anything is computed.
    """
    _check(config)
    chosen = _choose(config, groups_of(place))
    setup = Setup(config, place, workdir / EVAL, make_mesh(**config.mesh))
    makers = {"t2i": setup.t2i, "i2t": setup.i2t, "tokenizer": setup.tokenizer}
    parts = [makers[name]() for name in chosen]  # all mistakes show before the work
    results = [run_part(p, workdir / EVAL, config.eval.chunk) for p in parts]
    if processes.is_first():
        show(results, workdir / EVAL)
    return results if processes.is_first() else []


def _check(config: ConfigDict) -> None:
    for key, least in (("samples", 2), ("chunk", 1), ("judged", 0), ("batch_size", 1)):
        if config.eval[key] < least:
            raise UserError(
                f"eval.{key} is {config.eval[key]}; wanted at least {least}"
            )
    if config.eval.judged == 1:
        raise UserError("eval.judged is 1; statistics need 2 at least, or 0 for all")
    if config.eval.captions and not config.eval.protocol:
        raise UserError(
            f"eval.captions={config.eval.captions} needs --config.eval.protocol=NAME, "
            f"whose file it is: one of {', '.join(PROTOCOLS)}; or set data.eval"
        )
    check_resize(config.eval.fid.resize)
    for options in (config.sample, config.caption):
        SampleOptions(**options).check()


def _choose(config: ConfigDict, groups: Sequence[str]) -> list[str]:
    """The parts asked for; by default all that the weights have, of a protocol its own.

    Raises:
        UserError: where the weights lack a part that is asked for.
    """
    # ml_collections reads "t2i,i2t" as a tuple of that one text.
    asked = [name for text in config.eval.parts for name in text.split(",")]
    there = [name for name in PARTS if name in groups]
    if not there:
        raise UserError(
            f"the weights have none of {', '.join(PARTS)}; wanted the workdir of a "
            "run, or a directory of pretrained weights"
        )
    for name in asked:
        if name not in PARTS:
            raise UserError(
                f"eval.parts has {name!r}; wanted some of {', '.join(PARTS)}"
            )
        if name not in there:
            raise UserError(
                f"eval.parts has {name}, the weights have {', '.join(there)} only"
            )
    default = ["t2i"] if config.eval.protocol else there
    return [name for name in PARTS if name in (asked or default)]


class Setup:
    """What the parts are made of, each thing made once, and when it is asked for."""

    def __init__(self, config: ConfigDict, place: Place, folder: Place, mesh: Mesh):
        self._config, self._place, self._folder = config, place, folder
        self._mesh = mesh
        self._digests: dict[str, str] = {}  # of groups of parameters

    @functools.cached_property
    def _flowtok(self) -> FlowTok:
        return FlowTok.from_pretrained(self._place, self._config, mesh=self._mesh)

    @functools.cached_property
    def real(self) -> RealImages:
        """The images of data.eval."""
        config = self._config
        spec = config.data.eval or config.data.train
        if not spec:
            raise UserError(
                "data.eval names no images; wanted --config.data.eval=folder:DIR, say"
            )
        transform = ImageTransform(
            config.tokenizer.image_size,
            max_pixels=config.data.transform.max_pixels,
            filters=Filters(**config.data.filters),
        )
        found = RealImages(
            spec,
            transform,
            count=config.eval.samples,
            seed=config.train.seed,
            threads=config.data.threads,
            cache=config.data.cache,
        )
        if found.count < config.eval.samples:
            counts = found.count, config.eval.samples
            logging.warning("%s has %d images, fewer than the %d wanted", spec, *counts)
        return found

    @property
    def _judged(self) -> int:
        return self._config.eval.judged or self._config.eval.samples

    @functools.cached_property
    def _extract(self) -> Extractor:
        return make_extractor(self._config, self._mesh)

    def _net(self, name: str) -> MetricNet | str:
        """A network of metrics, or why it is not there."""
        if not self._config.eval.weights:
            return NO_WEIGHTS
        try:
            net = load_metric_net(name, self._config.eval.weights)
        except UserError as error:
            return str(error)
        # Once, not with every chunk.
        return net._replace(params=jax.device_put(net.params))

    def _clip(self) -> tuple[MetricNet, Vocabulary] | str:
        net = self._net("clip")
        if isinstance(net, str):
            return net
        if net.sha256 == RANDOM:
            return net, self._flowtok.vocabulary
        path = to_place(self._config.eval.weights) / VOCABULARY
        return net, Vocabulary.load(str(path), net.module.text.context)

    @functools.cached_property
    def _reference(self) -> tuple[Reference, str]:
        """The statistics to compare with, and the name of their file."""
        given = self._config.eval.fid.reference
        if given:
            return read_reference(to_place(given)), given
        if self._config.eval.protocol:
            raise UserError(
                f"eval.protocol={self._config.eval.protocol} needs "
                "--config.eval.fid.reference=FILE.npz; make it by `python -m "
                "flowtok_jax.eval.reference --images=DIR --out=FILE.npz`"
            )
        return self._real_reference()

    def _real_reference(self) -> tuple[Reference, str]:
        """Statistics of the images of data.eval; a file keeps them for the next run."""
        real, extract = self.real, self._extract
        count = min(self._judged, real.count)
        made = {**self._data(), "images": count, "resize": extract.resize}
        made["inception"] = extract.net_sha256
        path = self._folder / f"reference_{digest(made)}.npz"
        is_there = np.array([processes.is_first() and path.is_file()])
        if not processes.total(is_there).any():
            found = make_reference(extract, count, real.pixels, keeps_features=True)
            processes.first_does(lambda: write_reference(path, found))
            return found, path.name
        return read_reference(path), path.name

    def _features(self, protocol: str, count: int) -> FeatureMetrics:
        """What Inception measures of the first ones of so many images."""
        reference, name = self._reference
        check_fits(reference, name, self._extract)
        return FeatureMetrics(
            self._extract,
            reference,
            min(self._judged, count),
            functools.partial(metric_suffix, protocol),
        )

    def _data(self) -> dict[str, Any]:
        config = self._config
        return {
            "data": self.real.spec,
            "samples": self.real.count,
            "image_size": config.tokenizer.image_size,
            "data_seed": config.train.seed,  # of generated scenes
            "filters": config.data.filters.to_dict(),
        }

    def _weights(self, part: str) -> dict[str, Any]:
        """What the numbers depend on beside data and metrics."""
        config, groups = self._config, GROUPS[part]
        weights: dict[str, Any] = {"kind": "pretrained"}
        if not pretrained.is_pretrained(self._place):
            steps = {g: steps_of(self._place, g)[-1:] for g in groups}
            weights = {"kind": "ema", "steps": {g: s[0] for g, s in steps.items() if s}}
        for group in groups:
            if group not in self._digests:
                params = self._flowtok.params[group]
                self._digests[group] = params_sha256(params)
        digests = {group: self._digests[group] for group in groups}
        found = {"weights": weights | {"sha256": digests}}
        return {**found, "precision": config.compute.dtype, "seed": config.eval.seed}

    def _sampler(self, section: str) -> dict[str, Any]:
        options = self._config[section].to_dict()
        return {k: v for k, v in options.items() if k != "batch_size"}

    def t2i(self) -> Part:
        """Text to image, of the protocol's captions or those of data.eval."""
        config, wanted = self._config, []
        if name := config.eval.protocol:
            path, samples = config.eval.captions, config.eval.samples
            prompts = read_prompts(name, path, samples)
            origin: dict[str, Any] = {"protocol": name}
        else:
            prompts, origin = self.real.prompts(), self._data()
            if self.real.are_scenes:
                wanted = [self.real.scene(i) for i in range(len(prompts))]
        features = self._features(config.eval.protocol, len(prompts))
        origin |= {"samples": len(prompts), "captions_sha256": digest_of(prompts)}
        sampler = {"sampler": self._sampler("sample")}
        image_size = {"image_size": config.tokenizer.image_size}
        return TextToImage(
            self._flowtok,
            prompts,
            seed=config.eval.seed,
            protocol=origin | self._weights("t2i") | sampler | image_size,
            features=features,
            clip=self._clip(),
            wanted=wanted,
        )

    def i2t(self) -> Part:
        """Captions of the images of data.eval."""
        config, real = self._config, self.real
        source = CaptionedImages(
            real.spec,
            image_size=config.tokenizer.image_size,
            seed=config.train.seed,
            cache=config.data.cache,
        )
        sampler = {"sampler": self._sampler("caption")}
        # Without filters: every image is captioned.
        data = {k: v for k, v in self._data().items() if k != "filters"}
        scale = {"text_scale": config.loss.i2t.text_scale}
        return ImageToText(
            self._flowtok,
            source,
            count=real.count,
            seed=config.eval.seed,
            protocol=data | self._weights("i2t") | scale | sampler,
            scene_of=real.scene if real.are_scenes else None,
        )

    def tokenizer(self) -> Part:
        """The images of data.eval, encoded and decoded."""
        has_weights = bool(self._config.eval.weights)
        return Reconstruction(
            self._flowtok,
            self.real,
            protocol=self._data() | self._weights("tokenizer"),
            features=self._features("", self.real.count) if has_weights else None,
            lpips=self._net("lpips"),
            judged=self._judged,
            batch_size=self._config.sample.batch_size,
        )
