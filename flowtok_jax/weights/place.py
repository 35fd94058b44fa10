"""Trained parameters of a place: a run's workdir, where they are the item `ema` of
CHECKPOINTS/GROUP/STEP, or a directory of pretrained weights.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.models.build import Nets, init_networks
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, absolute, to_place
from flowtok_jax.runtime.mesh import replicated
from flowtok_jax.weights import pretrained
from flowtok_jax.weights.safetensors import check_shapes

CHECKPOINTS = "checkpoints"


def steps_of(workdir: Place, group: str) -> list[int]:
    """The finished checkpoints of a group, oldest first."""
    folder = workdir / CHECKPOINTS / group
    if not folder.is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(folder))


def groups_of(place: Place) -> list[str]:
    """The groups that a place has parameters of."""
    if pretrained.is_pretrained(place):
        return pretrained.read_groups(place)
    folder = place / CHECKPOINTS
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [group for group in names if steps_of(place, group)]


def read_group(
    place: Place, nets: Nets, group: str, wanted: Params, *, is_start: bool = False
) -> Params:
    """A group's parameters in this machine's memory, of a run the newest EMA ones.

    Args:
        is_start: as of `pretrained.check_unseen`.

    Raises:
        UserError: where there are none, or they do not fit the networks.
    """
    if group not in groups_of(place):
        raise UserError(f"no weights of {group} in {place}")
    pretrained.check_unseen(place, nets, group, wanted, is_start=is_start)
    if pretrained.is_pretrained(place):
        return pretrained.read_group(place, group, wanted)
    step = steps_of(place, group)[-1]
    return _restore(place / CHECKPOINTS / group / str(step) / "ema", wanted)


def _restore(path: Place, wanted: Params) -> Params:
    target = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), wanted)
    with _quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(absolute(path)).item_metadata.tree
        except AttributeError as error:
            reason = ValueError("its metadata cannot be read")
            raise _damaged(path, reason) from error
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        got, wanted = (
            {name: tuple(leaf.shape) for name, leaf in flatten_dict(t, sep="/").items()}
            for t in (stored, wanted)
        )
        check_shapes(f"{path} does not fit the config", got, wanted)
        try:
            return checkpointer.restore(absolute(path), target)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error


def _damaged(path: Place, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    return UserError(
        f"{path} is damaged ({reason}); move {path.parent} away to use the checkpoint "
        "before it"
    )


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without its warning that an item has no metadata: those are the checkpoint's."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _init_from(config: ConfigDict) -> Place | None:
    """The place that `init_from` names.

    Raises:
        UserError: where it names one that is not there.
    """
    place = to_place(config.init_from) if config.init_from else None
    if place is not None and not place.is_dir():
        raise UserError(
            f"init_from = {place} does not exist; wanted the workdir of a run, or a "
            "directory written by save_pretrained or `python -m flowtok_jax.convert`"
        )
    return place


def load_group(
    group: str, nets: Nets, wanted: Params, config: ConfigDict, workdir: Place
) -> Params:
    """A group's parameters: of this workdir, else of `init_from`.

    Raises:
        UserError: where none of these has them, saying what to do.
    """
    places = [place for place in (workdir, _init_from(config)) if place]
    for place in places:
        if group in groups_of(place):
            return read_group(place, nets, group, wanted)
    where = " nor in ".join(map(str, places))
    cure = (
        "set --config.init_from=DIR to a directory that has it, or "
        "--config.text.weights=random for a tower at random initialisation"
        if group == "clip"
        else f"train it first (stage {group}), or set --config.init_from=WORKDIR to "
        "where it was trained"
    )
    raise UserError(f"no weights of {group} in {where}; {cure}")


def load_start(
    group: str, nets: Nets, wanted: Params, config: ConfigDict
) -> Params | None:
    """What training of a group starts from: its parameters in `init_from`, if any."""
    place = _init_from(config)
    if place is None:
        return None
    if group not in groups_of(place):
        logging.info("%s starts afresh: %s does not have it", group, place)
        return None
    logging.info("%s starts from %s", group, place)
    return read_group(place, nets, group, wanted, is_start=True)


def store_random_clip(config: ConfigDict, nets: Nets, workdir: Place) -> None:
    """Stores the never-trained text tower of a config that wants one.

    Stored, not drawn again, so that weights trained on its features keep it; for the
    same reason that of `init_from` goes before.
    """
    if config.text.weights != "random" or steps_of(workdir, "clip"):
        return
    place = _init_from(config)
    if place is not None and "clip" in groups_of(place):
        return
    everywhere = replicated(jax.make_mesh((jax.device_count(),), ("device",)))
    init = functools.partial(init_networks, nets, ("clip",))
    init = jax.jit(init, out_shardings=everywhere)
    params = init(jax.random.key(config.text.seed))
    folder = absolute(workdir / CHECKPOINTS / "clip")
    with ocp.CheckpointManager(folder) as manager:
        manager.save(0, args=ocp.args.Composite(ema=ocp.args.StandardSave(params)))
