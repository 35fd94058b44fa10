"""FID, KID, precision, recall and the Inception score of one set of images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from flowtok_jax.eval.chunks import Arrays
from flowtok_jax.eval.features import Extractor
from flowtok_jax.eval.fid import inception_score, kernel_distance, precision_recall
from flowtok_jax.eval.parts import Measured
from flowtok_jax.eval.references import Gaussian, Reference
from flowtok_jax.eval.statistics import Moments

SPLITS, SUBSETS, SUBSET_SIZE, NEIGHBOURS = 10, 100, 1000, 3
RANDOM = "_random_inception"
FEW = "wanted {} samples at least"
OF_FEATURES = ("kid", "precision", "recall")
NO_FEATURES = "the reference holds no features; make it with --features to measure this"


class FeatureMetrics(NamedTuple):
    """What Inception says of images, against a reference.

    Attributes:
        samples: how many it looks at, the first ones.
        suffix: of the metrics' names; `metric_suffix` of a protocol.
    """

    extract: Extractor
    reference: Reference
    samples: int
    suffix: Callable[..., str]

    @property
    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on."""
        return {
            "inception": self.extract.net_sha256,
            "resize": self.extract.resize,
            "images": self.samples,
            "reference": self.reference.describe(),
            "inception_score": {"splits": SPLITS},
            "kid": {"subsets": SUBSETS, "subset_size": self._subset_size},
            "precision_recall": {"k": NEIGHBOURS},
        }

    @property
    def _subset_size(self) -> int:
        """Of KID: no set can give more rows than it has."""
        features = self.reference.features
        sizes = [self.samples] if features is None else [self.samples, len(features)]
        return min(SUBSET_SIZE, *sizes)

    def see(
        self, images: UInt8[np.ndarray, "b s s 3"], numbers: range | np.ndarray
    ) -> Arrays:
        """The arrays of these images that it looks at, by their numbers."""
        mine = images[np.array(numbers) < self.samples]
        found = self.extract(len(mine), mine.__getitem__)
        return {"pool": found.pool, "logits": found.logits}

    def name(self, metric: str, *counts: int) -> str:
        """A metric's name, which tells on what it rests; counts as of the suffix."""
        net = RANDOM if self.extract.net_sha256 == "random" else ""
        return f"{metric}{net}{self.suffix(*counts)}"

    def fid(self, pool: np.ndarray) -> float:
        """The Frechet distance of features from the reference."""
        return Gaussian.of(Moments.of(pool)).distance(self.reference.whole)

    def measure(
        self, arrays: Arrays, groups: Sequence[str] = (), fid: str = "fid"
    ) -> Measured:
        """All of the numbers.

        Args:
            groups: of each row that was looked at; also measured one by one.
            fid: what FID is called here.
        """
        pool, real = arrays["pool"], self.reference.features
        count, found, lacking = len(pool), {}, {}
        if count < 2:
            lacking[fid] = FEW.format(2)
        else:
            found[fid] = self.fid(pool)
        if count < SPLITS:
            lacking["inception_score"] = FEW.format(SPLITS)
        else:
            score = inception_score(arrays["logits"], splits=SPLITS)
            found |= {"inception_score": score.mean, "inception_score_std": score.std}
        if real is None:
            lacking |= dict.fromkeys(OF_FEATURES, NO_FEATURES)
        elif min(count, len(real)) <= NEIGHBOURS:
            reason = f"{FEW.format(NEIGHBOURS + 1)}, and as many real images"
            lacking |= dict.fromkeys(OF_FEATURES, reason)
        else:
            sizes = {"subsets": SUBSETS, "subset_size": self._subset_size}
            kid = kernel_distance(pool, real, **sizes)
            precision, recall = precision_recall(real, pool, k=NEIGHBOURS)
            found |= {"kid": kid.mean, "kid_std": kid.std}
            found |= {"precision": precision, "recall": recall}
        named = {self.name(k, count): v for k, v in found.items()}
        lacking = {self.name(k, count): v for k, v in lacking.items()}
        return Measured(named, lacking).merge(self._by_group(pool, groups))

    def _by_group(self, pool: np.ndarray, groups: Sequence[str]) -> Measured:
        """FID of each group."""
        found, lacking = {}, {}
        names = np.array(groups)
        for group in sorted(set(groups) - {""}):
            rows = pool[names == group]
            name = self.name(f"fid_{group}", len(pool), len(rows))
            if group not in self.reference.groups:
                lacking[name] = (
                    f"the reference has no group {group}; make it with --by_folder"
                )
            elif len(rows) < 2:
                lacking[name] = FEW.format(2)
            else:
                ours = Gaussian.of(Moments.of(rows))
                found[name] = ours.distance(self.reference.groups[group])
        return Measured(found, lacking)
