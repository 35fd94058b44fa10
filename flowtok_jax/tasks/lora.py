"""Any task with adapters (models/lora.py) in place of the networks that it trains.

    L(adapters) = L(task)(merge(base, adapters))                                    (1)

The base is what the task would have gone on from. It is a frozen group like the others,
so that gradients, optimiser, averages and checkpoints are those of the adapters.
"""

import jax
from ml_collections import ConfigDict

from flowtok_jax.array_types import Key, Params
from flowtok_jax.models.build import Nets, init_networks
from flowtok_jax.models.lora import ADAPTED, LoraOptions, init_adapters, merge
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks.base import Loss, Task

BASE = "base"  # role of the adapted group


def with_adapters(task: Task, config: ConfigDict) -> Task:
    """Returns the task, or where config.lora asks for it the one of its adapters.

    Raises:
        UserError: for options that cannot be.
    """
    if not config.lora.rank:
        return task
    if config.init_vocabulary:
        raise UserError(
            f"lora.rank is {config.lora.rank}, and init_vocabulary "
            f"{config.init_vocabulary!r} asks for new words, whose rows no adapter "
            "has; expected one of them"
        )
    return task._replace(
        name=task.name + ADAPTED,
        frozen={**task.frozen, BASE: task.name},
        lora=LoraOptions(**config.lora).check(),
    )


def whole_params(task: Task, trained: Params, frozen: Params) -> Params:
    """Returns the parameters of a task's networks, of adapters those that they make."""
    if task.lora is None:
        return trained
    return merge(frozen[BASE], trained, task.lora.scale)


def through_adapters(task: Task, loss: Loss) -> Loss:
    """Makes a loss of a task's networks one of what the task trains, (1)."""
    if task.lora is None:
        return loss

    def adapted(trained, frozen, *rest):
        return loss(whole_params(task, trained, frozen), frozen, *rest)

    return adapted


def init_trained(
    task: Task, nets: Nets, networks: tuple[str, ...], key: Key
) -> dict[str, Params]:
    """Draws what a task trains: parameters of the networks, or adapters of these."""
    if task.lora is None:
        return init_networks(nets, networks, key)
    shapes = jax.eval_shape(lambda: init_networks(nets, networks, key))
    return init_adapters(shapes, task.lora, key)
