"""Trained parameters of a workdir: CHECKPOINTS/GROUP/STEP, item `ema`."""

import pathlib

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from flowtok_jax.errors import UserError
from flowtok_jax.models.build import Nets, abstract_group, init_group
from flowtok_jax.shapes import Params

CHECKPOINTS = "checkpoints"


def steps_of(workdir: pathlib.Path, group: str) -> list[int]:
    """The finished checkpoints of a group, oldest first."""
    folder = workdir / CHECKPOINTS / group
    if not folder.is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(folder))


def read_group(workdir: pathlib.Path, nets: Nets, group: str) -> Params:
    """The newest EMA parameters of a group.

    Raises:
        UserError: where there is no checkpoint.
        UserError: where one is there that does not fit the networks.
    """
    steps = steps_of(workdir, group)
    folder = workdir / CHECKPOINTS / group
    if not steps:
        raise UserError(f"no checkpoint of {group} in {folder}")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here),
        abstract_group(nets, group),
    )
    path = (folder / str(steps[-1]) / "ema").resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, target)


def load_group(
    group: str, nets: Nets, config: ConfigDict, workdir: pathlib.Path
) -> Params:
    """A group's parameters: of this workdir, else of `init_from`, else random CLIP.

    Raises:
        UserError: where none of these has them, saying what to do.
    """
    places = [workdir]
    if config.init_from:
        places.append(pathlib.Path(config.init_from))
    for place in places:
        if steps_of(place, group):
            return read_group(place, nets, group)
    if group == "clip" and config.text.weights == "random":
        return init_group(nets, "clip", jax.random.key(config.text.seed))
    where = " nor in ".join(str(p / CHECKPOINTS / group) for p in places)
    cure = (
        "set --config.init_from=DIR to a directory that has it, or "
        "--config.text.weights=random for a tower at random initialisation"
        if group == "clip"
        else f"train it first (stage {group}), or set --config.init_from=WORKDIR to "
        "where it was trained"
    )
    raise UserError(f"no weights of {group} in {where}; {cure}")
