"""The rows of --mode=bench's suites, as data: what is measured, and in which order.

A row is one figure or one program. Rows are in the order of their worth, since time on
an accelerator may end before the last of them.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flowtok_jax.flow.samplers import AVERAGE
from flowtok_jax.models import dit

MATMUL = "matmul"
SAMPLE = "sample"
PROFILE = "profile"
TRAIN = "train"
FULL = "full"
SMALL = "small"


class SuiteRow(NamedTuple):
    """One row: how fast the device multiplies, samples or trains.

    Attributes:
        kind: MATMUL, SAMPLE, PROFILE (time by module, in sampling) or TRAIN (a step at
            the largest batch that fits).
        size: a name of the suite's sizes.
        batch: images of a call; of training the first batch that is tried.
    """

    kind: str
    size: str = ""
    batch: int = 0
    solver: str = "euler"
    num_steps: int = 0
    attention: str = "xla"
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """The row's name, unique in a suite."""
        if self.kind == MATMUL:
            return f"{self.kind} {self.dtype}"
        if self.kind == TRAIN:
            return f"{self.kind} {self.size}"
        how = f"{self.solver} {self.num_steps} {self.attention}"
        return f"{self.kind} {self.size} {self.batch} {how}"


class Suite(NamedTuple):
    """Rows with the sizes that they are about.

    Attributes:
        shared: sections of the config, of every row.
        sizes: name -> sections of the config.
        matmul_sides: sides of the square matrices that are multiplied.
        matmul_flops: work of one timed call with them.
        most_batch: the largest batch that training tries.
    """

    shared: Mapping[str, Any]
    sizes: Mapping[str, Mapping[str, Any]]
    rows: tuple[SuiteRow, ...]
    matmul_sides: tuple[int, ...]
    matmul_flops: float
    most_batch: int


BATCHES = (64, 8, 1)
SAMPLERS = (("euler", 20), (AVERAGE, 4), (AVERAGE, 1))
# Names of the rows of most worth. The others follow in the order of their making.
FIRST = (
    "matmul bfloat16",
    "sample xl 64 euler 20 xla",
    "train xl",
    "sample xl 64 average 4 xla",
    "sample xl 64 euler 20 cudnn",
    "profile xl 64 euler 20 xla",
    "sample xl 1 euler 20 xla",
    "sample h 64 euler 20 xla",
    "train h",
    "sample xl 1 average 4 xla",
    "matmul float32",
    "train b",
)


def _make_rows(first_batch: int) -> tuple[SuiteRow, ...]:
    """Makes the rows of both suites, in the order of their worth.

    Args:
        first_batch: the first batch that training tries.
    """
    rows = [SuiteRow(MATMUL, dtype=dtype) for dtype in ("bfloat16", "float32")]
    choices = itertools.product(("xl", "h"), BATCHES, SAMPLERS, ("xla", "cudnn"))
    rows += [
        SuiteRow(SAMPLE, size, batch, *sampler, attention)
        for size, batch, sampler, attention in choices
    ]
    rows.append(SuiteRow(PROFILE, "xl", 64, *SAMPLERS[0]))
    rows += [SuiteRow(TRAIN, size, first_batch) for size in ("xl", "h", "b")]
    by_name = {row.name: row for row in rows}
    ordered = dict.fromkeys((*FIRST, *by_name))
    return tuple(by_name[name] for name in ordered)


# Training is on latents, on one device, whatever the config says.
_SHARED = {
    "data": {"train": "latents:*.tar"},
    "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
    "train": {"accumulate": 1},
}
_TINY = {"width": 32, "depth": 2, "heads": 2}
SUITES = {
    FULL: Suite(
        shared=_SHARED,
        sizes={  # what is computed again is that of the configs of these names
            "b": {"dit": dit.SIZES["b"], "compute": {"remat": "dense"}},
            "xl": {"dit": dit.SIZES["xl"], "compute": {"remat": "dense_but_qkv"}},
            "h": {"dit": dit.SIZES["h"], "compute": {"remat": "dense_but_qkv"}},
        },
        rows=_make_rows(64),
        matmul_sides=(2048, 4096, 8192, 16384),
        matmul_flops=2 * 16384.0**3,
        most_batch=16384,
    ),
    SMALL: Suite(
        shared={
            **_SHARED,
            "latent": {"tokens": 16, "channels": 4},
            "clip": {**_TINY, "vocab_size": 512},
            "tokenizer": {"image_size": 32, "encoder": _TINY, "decoder": _TINY},
            "projector": {"depth": 2, "heads": 2, "mlp_width": 32},
            "align_head": {"width": 32},
        },
        sizes={
            "b": {"dit": {**_TINY, "depth": 2}},
            "xl": {"dit": {**_TINY, "depth": 3}},
            "h": {"dit": {**_TINY, "depth": 4}},
        },
        rows=_make_rows(4),
        matmul_sides=(128, 256, 512),
        matmul_flops=16 * 512.0**3,
        most_batch=16,
    ),
}


def rows_for(rows: Sequence[SuiteRow], platform: str) -> tuple[SuiteRow, ...]:
    """Returns the rows that a platform can have: cuDNN's are for GPUs alone."""
    return tuple(r for r in rows if r.attention != "cudnn" or platform == "gpu")
