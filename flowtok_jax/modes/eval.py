"""--mode=eval: what trained weights are worth, with the whole protocol beside it.

    python -m flowtok_jax.main --mode=eval --workdir=runs/demo
    python -m flowtok_jax.main --mode=eval --config=configs/eval.py \\
        --checkpoint=weights/xl --workdir=runs/xl --config.eval.protocol=coco_fid_30k \\
        --config.eval.captions=captions_val2014.json --config.eval.samples=30000 \\
        --config.eval.weights=weights/metrics --config.eval.fid.reference=coco.npz

Each part (t2i, i2t, tokenizer) writes to WORKDIR/eval what eval/evaluate.py says.
"""

import logging
import signal
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from flowtok_jax.eval.ending import EVAL
from flowtok_jax.eval.evaluate import PROTOCOL, run_part, show_results
from flowtok_jax.eval.features import check_resize
from flowtok_jax.eval.parts import PARTS, PartMaker
from flowtok_jax.eval.protocols import PROTOCOLS
from flowtok_jax.models.build import has_group
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.modes.sample import random_tower_note
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.cli import join_processes
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, check_writable, flatten
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.sampling import SampleOptions
from flowtok_jax.weights.place import Weights

JUDGED_DATA = ("scenes", "all", "none")  # choices of eval.random_metrics
LEAST = {
    "samples": 2,
    "chunk": 1,
    "judged": 0,
    "batch_size": 1,
    "retrieval.side": 0,
    "retrieval.images": 1,
}


def run(arguments: Arguments) -> int:
    """Measures the weights."""
    weights = arguments.weights
    config = arguments.weights_config()
    config = weights.config if config is None else config
    if "eval" not in config or "protocol" not in config.eval:
        raise UserError(
            f"the config stored in {weights.place} has no keys of --mode=eval; give a "
            "config beside it: --config=configs/eval.py, or the one it was trained with"
        )
    join_processes(arguments.flags)
    # Nothing has to be saved; among several processes JAX would keep it to itself.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    evaluate(config, weights, arguments.output())
    if note := random_tower_note(weights):
        logging.info(note)
    return 0


def evaluate(
    config: ConfigDict, weights: Weights, workdir: Place
) -> list[dict[str, Any]]:
    """Evaluates the parts that the config names; every process of a run calls it.

    Args:
        workdir: where `eval` lies.

    Returns:
        In process 0, the content of the JSON files.

    Raises:
        UserError: if something does not fit, before anything is computed.
    """
    check_options(config)
    chosen = _choose(config, weights.groups)
    processes.first_does(lambda: check_writable(workdir / EVAL / PROTOCOL))
    maker = PartMaker(config, weights, workdir / EVAL, make_mesh(**config.mesh))
    parts = [maker.make(name) for name in chosen]  # all mistakes show before the work
    results = [run_part(p, workdir / EVAL, config.eval.chunk) for p in parts]
    if processes.is_first():
        show_results(results, workdir / EVAL)
    return results if processes.is_first() else []


def check_options(config: ConfigDict) -> None:
    """Refuses values of `eval` that cannot be.

    Raises:
        UserError: naming the key.
    """
    values = flatten(config.eval.to_dict())
    for key, least in LEAST.items():
        if values[key] < least:
            raise UserError(f"eval.{key} is {values[key]}; expected at least {least}")
    if config.eval.judged == 1:
        raise UserError("eval.judged is 1; statistics need 2 at least, or 0 for all")
    if config.eval.captions and not config.eval.protocol:
        raise UserError(
            f"eval.captions={config.eval.captions} needs --config.eval.protocol=NAME, "
            f"whose file it is: one of {', '.join(PROTOCOLS)}; or set data.eval"
        )
    if config.eval.random_metrics not in JUDGED_DATA:
        raise UserError(
            f"eval.random_metrics is {config.eval.random_metrics!r}; expected one of "
            f"{', '.join(JUDGED_DATA)}"
        )
    check_resize(config.eval.fid.resize, "eval.fid.resize")
    for section in ("sample", "caption"):
        SampleOptions(**config[section]).check(section)


def _choose(config: ConfigDict, groups: Sequence[str]) -> list[str]:
    """Returns the parts asked for, by default all that the weights have, or for a
    protocol text to image.

    Raises:
        UserError: if the weights lack a part that is asked for.
    """
    # ml_collections reads "t2i,i2t" as a tuple of that one text.
    asked = [name for text in config.eval.parts for name in text.split(",")]
    there = [name for name in PARTS if has_group(name, groups)]
    if not there:
        raise UserError(
            f"the weights have none of {', '.join(PARTS)}; expected the workdir of a "
            "run, or a directory of pretrained weights"
        )
    for name in asked:
        if name not in PARTS:
            raise UserError(
                f"eval.parts has {name!r}; expected some of {', '.join(PARTS)}"
            )
        if name not in there:
            raise UserError(
                f"eval.parts has {name}, the weights have {', '.join(there)} only"
            )
    # A protocol names captions, without images to caption or encode.
    default = ["t2i"] if config.eval.protocol else there
    return [name for name in PARTS if name in (asked or default)]
