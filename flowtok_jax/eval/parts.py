"""The parts of an evaluation as a config asks for them, each ingredient made once."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flowtok_jax.data.centre import CentreReader, open_images
from flowtok_jax.data.loader import caption_options, evaluated_source
from flowtok_jax.data.open_captions import read_caption
from flowtok_jax.data.records import UNWANTED, Joined
from flowtok_jax.data.source_strings import parse_sources
from flowtok_jax.data.transforms import Filters
from flowtok_jax.data.vocabulary import VOCABULARY, Vocabulary
from flowtok_jax.eval.evaluate import NO_WEIGHTS, Part, short_digest
from flowtok_jax.eval.features import Extractor, FeatureMetrics
from flowtok_jax.eval.fid import Reference
from flowtok_jax.eval.i2t import ImageToText
from flowtok_jax.eval.previews import make_extractor
from flowtok_jax.eval.protocols import metric_suffix, read_prompts
from flowtok_jax.eval.real import RealImages
from flowtok_jax.eval.reconstruction import PerceptualDistance
from flowtok_jax.eval.reference import make_reference
from flowtok_jax.eval.reference_file import (
    check_fits,
    read_reference,
    write_reference,
)
from flowtok_jax.eval.retrieval import GalleryImages, Retrieval
from flowtok_jax.eval.scene_judges import (
    OpenCaptionJudge,
    SceneJudge,
    WholeSceneJudge,
)
from flowtok_jax.eval.t2i import TextToImage
from flowtok_jax.eval.tokenizer import Reconstruction
from flowtok_jax.models.build import find_provider
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.errors import StoreError, UserError
from flowtok_jax.runtime.files import Place, json_sha256, to_place
from flowtok_jax.weights.nets import RANDOM, MetricNet, load_metric_net
from flowtok_jax.weights.place import RUN, Weights

HIDDEN = (
    "eval.weights=random are networks never trained; expected weights of metrics, or "
    "--config.eval.random_metrics=all to measure by these all the same"
)
PARTS = {part.name: part for part in (TextToImage, ImageToText, Reconstruction)}
# Reasons that a config gives, by data.filters or data.transform.max_pixels.
FILTERED = {*UNWANTED, "missing_metadata", "too_large"}


class PartMaker:
    """Makes the parts, and what they share when it is first asked for.

    Args:
        folder: where the results lie.
    """

    def __init__(self, config: ConfigDict, weights: Weights, folder: Place, mesh: Mesh):
        self._config = config
        self._opened = weights
        self._folder = folder
        self._mesh = mesh
        self._digests: dict[str, str] = {}  # of groups of parameters

    @functools.cached_property
    def _flowtok(self) -> FlowTok:
        return FlowTok.from_weights(self._opened, self._config, self._mesh)

    @functools.cached_property
    def _centre(self) -> CentreReader:
        config = self._config
        return CentreReader(
            config.tokenizer.image_size,
            max_pixels=config.data.transform.max_pixels,
            filters=Filters(**config.data.filters),
        )

    @functools.cached_property
    def real(self) -> RealImages:
        """The images of data.eval."""
        config = self._config
        found = self._open(self._centre)
        if found.drawn < config.eval.samples:
            counts = found.drawn, config.eval.samples
            logging.warning(
                "%s has %d images, fewer than the %d asked for", found.spec, *counts
            )
        return found

    def _open(self, centre: CentreReader) -> RealImages:
        config = self._config
        spec, side = evaluated_source(config)
        if not spec:
            raise UserError(
                "data.eval names no images; expected --config.data.eval=folder:DIR, say"
            )
        return RealImages(
            spec,
            centre,
            count=config.eval.samples,
            seed=config.train.seed,
            threads=config.data.threads,
            cache=config.data.cache,
            captions=caption_options(config),
            side=side,
            drawn_by=config.eval.seed,
            max_rejected=config.data.max_rejected,
        )

    @functools.cached_property
    def _unjudged(self) -> str:
        """Reason for which no network judges images; empty where networks do."""
        options = self._config.eval
        if not options.weights:
            return NO_WEIGHTS
        if options.weights != RANDOM or options.protocol or options.fid.reference:
            return ""
        match options.random_metrics:
            case "all":
                return ""
            # On scenes they cost little, and tell that the code of metrics runs.
            case "scenes" if self.real.are_scenes:
                return ""
        return HIDDEN

    @property
    def _judged(self) -> int:
        return self._config.eval.judged or self._config.eval.samples

    @functools.cached_property
    def _extract(self) -> Extractor:
        return make_extractor(self._config, self._mesh)

    def _net(self, name: str) -> MetricNet | str:
        """Returns a network of metrics, or why there is none."""
        if self._unjudged:
            return self._unjudged
        try:
            net = load_metric_net(name, self._config.eval.weights)
        except StoreError:  # no reason to measure less: another try may find them
            raise
        except UserError as error:
            return str(error)
        # Networks stay on the devices, and are not sent with every chunk.
        return net._replace(params=jax.device_put(net.params))

    def _clip_net(self) -> tuple[MetricNet, Vocabulary] | str:
        net = self._net("clip")
        if isinstance(net, str):
            return net
        # The random tower knows the ids of any vocabulary up to CLIP's own size.
        if net.sha256 == RANDOM:
            return net, self._flowtok.vocabulary
        path = to_place(self._config.eval.weights) / VOCABULARY
        return net, Vocabulary.load(str(path), net.module.text.context)

    @functools.cached_property
    def _reference(self) -> tuple[Reference, str]:
        """Statistics to compare with, and the name of their file."""
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
        """Reads or makes statistics of the images of data.eval; a file keeps them."""
        real = self.real
        extract = self._extract
        count = min(self._judged, real.count)
        made = {**self._data(real), "images": count, "resize": extract.resize}
        made["inception"] = extract.net_sha256
        path = self._folder / f"reference_{short_digest(made)}.npz"
        # All processes decide alike, though only the first one may see its own disk.
        is_there = np.array([processes.is_first() and path.is_file()])
        if not processes.total(is_there).any():
            # KID, precision and recall need the features themselves.
            found = make_reference(extract, count, real.pixels, keeps_features=True)
            processes.first_does(lambda: write_reference(path, found))
            return found, path.name
        return read_reference(path), path.name

    def _features(self, protocol: str, count: int) -> FeatureMetrics | str:
        """Makes the metrics of Inception on the first ones of `count` images, or says
        why there are none.
        """
        # Who names a protocol or a reference asks for FID, and is told below.
        is_asked = protocol or self._config.eval.fid.reference
        if self._unjudged and not is_asked:
            return self._unjudged
        reference, name = self._reference
        # A file from elsewhere may be of another network, size or resizing.
        check_fits(reference, name, self._extract)
        return FeatureMetrics(
            self._extract,
            reference,
            min(self._judged, count),
            functools.partial(metric_suffix, protocol),
        )

    def _data(self, real: RealImages) -> dict[str, Any]:
        config = self._config
        return {
            "data": real.spec,
            **real.choice,
            "samples": real.count,
            "image_size": config.tokenizer.image_size,
            "data_seed": config.train.seed,  # of generated scenes
            "filters": config.data.filters.to_dict(),
        }

    def _weights(self, groups: Sequence[str]) -> dict[str, Any]:
        """Describes what the numbers depend on beside data and metrics."""
        config = self._config
        there = self._flowtok.params
        # Several parts of `both` are one group.
        groups = list(dict.fromkeys(find_provider(g, there) for g in groups))
        weights: dict[str, Any] = {"kind": "pretrained"}
        if self._opened.kind == RUN:
            steps = self._opened.steps
            of_groups = {g: steps[g] for g in groups if g in steps}
            weights = {"kind": "ema", "steps": of_groups}
        for group in groups:
            if group not in self._digests:
                # Digests take seconds at full size, and parts share groups.
                self._digests[group] = params_sha256(there[group])
        digests = {group: self._digests[group] for group in groups}
        found = {"weights": weights | {"sha256": digests}}
        # Integers have one digest, whether activations are rounded too or not.
        if how := config.compute.quantize:
            found["quantize"] = how
        return {**found, "precision": config.compute.dtype, "seed": config.eval.seed}

    def _sampler(self, section: str) -> dict[str, Any]:
        options = getattr(self._flowtok, section)._asdict()
        # Batches do not change what is sampled: noise depends on a row's number.
        return {k: v for k, v in options.items() if k != "batch_size"}

    def _t2i(self) -> Part:
        """Makes text to image, of the protocol's captions or those of data.eval."""
        config = self._config
        scene_judge = None
        retrieval = None
        if name := config.eval.protocol:
            # A protocol's captions are drawn; the reference stands for its images.
            prompts = read_prompts(name, config.eval.captions, config.eval.samples)
            origin: dict[str, Any] = {"protocol": name}
        else:
            prompts = self.real.prompts
            origin = self._data(self.real)
            # An oracle reads off generated scenes whether the caption was drawn.
            if self.real.are_scenes:
                scene_judge = self._make_scene_judge()
            elif config.eval.retrieval.side:
                retrieval = self._retrieval()
        features = self._features(name, len(prompts))
        origin |= {"samples": len(prompts), "captions_sha256": json_sha256(prompts)}
        sampler = {"sampler": self._sampler("sample")}
        image_size = {"image_size": config.tokenizer.image_size}
        return TextToImage(
            self._flowtok,
            prompts,
            seed=config.eval.seed,
            protocol=origin | self._weights(TextToImage.groups) | sampler | image_size,
            features=features,
            clip=self._clip_net(),
            scene_judge=scene_judge,
            retrieval=retrieval,
        )

    def _make_scene_judge(self) -> SceneJudge:
        prompts = self.real.prompts
        if self.real.are_open:
            return OpenCaptionJudge([read_caption(p.caption) for p in prompts])
        return WholeSceneJudge([self.real.scene(i) for i in range(len(prompts))])

    def _retrieval(self) -> Retrieval:
        """Makes the retrieval of images drawn from the captions of data.eval."""
        config = self._config
        gallery = config.eval.retrieval.gallery
        named = {"data.eval": self.real.spec, "eval.retrieval.gallery": gallery}
        parts = [
            open_images(
                spec,
                key=key,
                image_size=config.tokenizer.image_size,
                seed=config.train.seed,
                cache=config.data.cache,
                captions=caption_options(config),
            )
            for key, spec in named.items()
            if spec
        ]
        images = GalleryImages(
            self.real,
            Joined(parts),
            self._centre,
            most=config.eval.retrieval.images,
            threads=config.data.threads,
            max_rejected=config.data.max_rejected,
        )
        return Retrieval(
            self._flowtok,
            images,
            side=config.eval.retrieval.side,
            rows=config.sample.batch_size,
            spec=gallery,
        )

    def _i2t(self) -> Part:
        """Makes image to text, of the images of data.eval, whatever filters say.

        Of a published split none may be left out: its numbers are of all its images.
        """
        config = self._config
        real = self.real
        kinds = [part.kind for part in parse_sources(real.spec)]
        if len(kinds) > 1:
            raise UserError(
                f"captions are measured on one source of images; got {real.spec!r}: "
                "give one such as karpathy:dataset_coco.json:images:test"
            )
        if FILTERED & set(real.rejected):
            real = self._open(CentreReader(config.tokenizer.image_size))
        if real.left_out and kinds == ["karpathy"]:
            raise UserError(
                f"{real.spec}: {real.left_out}; expected all of a published split, "
                "whose captions are scored as a whole: mend them, or leave i2t out of "
                "--config.eval.parts"
            )
        sampler = {"sampler": self._sampler("caption")}
        # The digest of a protocol has what matters, and nothing more:
        data = {k: v for k, v in self._data(real).items() if k != "filters"}
        scale = {"text_scale": config.loss.i2t.text_scale}
        groups = ImageToText.groups
        if self._flowtok.caption.candidates > 1:  # text to image chooses among them
            groups = tuple(sorted({*groups, *TextToImage.groups}))
        return ImageToText(
            self._flowtok,
            real,
            seed=config.eval.seed,
            protocol=data | self._weights(groups) | scale | sampler,
        )

    def _tokenizer(self) -> Part:
        """Makes the tokenizer's part, of the images of data.eval."""
        lpips = self._net("lpips")
        if not isinstance(lpips, str):
            rows = self._config.eval.batch_size
            lpips = PerceptualDistance(lpips, self._mesh, rows)
        return Reconstruction(
            self._flowtok,
            self.real,
            protocol=self._data(self.real) | self._weights(Reconstruction.groups),
            features=self._features("", self.real.count),
            lpips=lpips,
            judged=self._judged,
            batch_size=self._config.sample.batch_size,
        )

    def make(self, name: str) -> Part:
        """Makes the part of this name of PARTS."""
        return getattr(self, f"_{name}")()
