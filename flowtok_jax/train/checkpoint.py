"""Checkpoints of one stage: items state, ema, data and meta, written by Orbax.

A checkpoint appears under its final name only when it is whole. `ema` is an item of its
own, so that sampling reads nothing else.
"""

import contextlib
import pathlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from flowtok_jax.train.state import TrainState
from flowtok_jax.weights import CHECKPOINTS


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C back until the end of the block: Orbax, cut short, leaves threads
    behind that fill the terminal with their tracebacks.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = []
    before = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


class Checkpoints:
    """Saves and restores the states of one stage; a context manager."""

    def __init__(self, workdir: pathlib.Path, stage: str, *, keep: int):
        folder = (workdir / CHECKPOINTS / stage).resolve()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        with uninterrupted():
            self._manager.close()

    def save(self, state: TrainState, meta: dict[str, Any], examples: int) -> None:
        """Starts writing; the caller may go on at once."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_without_ema(state)),
            ema=ocp.args.StandardSave(state.ema),
            data=ocp.args.JsonSave({"examples_seen": examples}),
            meta=ocp.args.JsonSave(meta),
        )
        with uninterrupted():
            self._manager.save(int(state.step), args=items)

    def read_meta(self) -> dict[str, Any] | None:
        """The meta of the newest whole checkpoint; None where there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        only = ocp.args.Composite(meta=ocp.args.JsonRestore())
        with uninterrupted():
            return self._manager.restore(step, args=only).meta

    def restore(self, abstract: TrainState) -> TrainState:
        """The newest state, laid out as `abstract` says."""
        wanted = ocp.args.Composite(
            state=ocp.args.StandardRestore(_without_ema(abstract)),
            ema=ocp.args.StandardRestore(abstract.ema),
        )
        with uninterrupted():
            items = self._manager.restore(self._manager.latest_step(), args=wanted)
        return TrainState(**items.state, ema=items.ema)


def _without_ema(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "key": state.key,
        "params": state.params,
        "opt_state": state.opt_state,
    }


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Shapes that also say where each array goes."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
    )
