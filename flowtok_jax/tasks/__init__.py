"""The table of tasks, one for each training stage.

A new task is one file here, with a `Task` of its own, and a config.
"""

from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from flowtok_jax.array_types import Key, Params
from flowtok_jax.models.build import Nets, abstract_networks, init_networks, take_group
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import both, distill, i2t, t2i, text_tokenizer, tokenizer
from flowtok_jax.tasks.base import Task
from flowtok_jax.tasks.lora import with_adapters

# By name, in the order in which a whole run trains them.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        tokenizer.TASK,
        text_tokenizer.TASK,
        t2i.TASK,
        i2t.TASK,
        both.TASK,
        *distill.TASKS,
    )
}


def find_task(stage: str) -> Task:
    """Returns the task of a stage.

    Raises:
        UserError: for a stage that no task describes.
    """
    if stage not in TASKS:
        raise UserError(f"stages has {stage!r}; expected some of {', '.join(TASKS)}")
    return TASKS[stage]


def task_of(config: ConfigDict, stage: str) -> Task:
    """Returns the task of a stage as a config asks for it, maybe with adapters.

    Raises:
        UserError: for a stage that no task describes, or adapters that cannot be.
    """
    return with_adapters(find_task(stage), config)


def networks_of(group: str, nets: Nets) -> tuple[str, ...]:
    """Returns the names of the networks whose parameters form a group.

    Raises:
        UserError: for a group that no task trains, and that is not the text tower.
    """
    if group == "clip":  # it comes with its weights, or stays random
        return ("clip",)
    if group not in TASKS:
        raise UserError(f"no group {group!r}; known are clip, {', '.join(TASKS)}")
    task = TASKS[group]
    has_tower = task.trains_tower and nets.clip.trained_along
    return (*task.networks, "clip") if has_tower else task.networks


def pick_group(
    params: Mapping[str, Params], group: str, nets: Nets
) -> dict[str, Params]:
    """Returns a group's networks, of groups that have it, or have it in `both`."""
    found = take_group(params, group)
    return {name: found[name] for name in networks_of(group, nets)}


def pick_frozen(
    params: Mapping[str, Params], group: str, nets: Nets
) -> dict[str, Params]:
    """Returns a group's networks for others to use: a projector with the tower that was
    trained along with it, which in `both` it has as the text tokenizer's too.
    """
    picked = pick_group(params, group, nets)
    found = take_group(params, group)
    has_tower = "projector" in picked and "clip" in found
    return picked | {"clip": found["clip"]} if has_tower else picked


def init_group(nets: Nets, group: str, key: Key) -> dict[str, Params]:
    """Draws fresh float32 parameters of the networks of a group."""
    return init_networks(nets, networks_of(group, nets), key)


def abstract_group(nets: Nets, group: str) -> dict[str, Params]:
    """Returns shapes and dtypes of a group's parameters, computing no values."""
    return abstract_networks(nets, networks_of(group, nets))


def abstract_groups(nets: Nets, groups: Iterable[str]) -> dict[str, dict[str, Params]]:
    """Computes shapes of several groups' parameters, of each network only once."""
    networks = {group: networks_of(group, nets) for group in groups}
    names = tuple(sorted({name for group in networks.values() for name in group}))
    shapes = abstract_networks(nets, names)
    return {g: {name: shapes[name] for name in n} for g, n in networks.items()}
