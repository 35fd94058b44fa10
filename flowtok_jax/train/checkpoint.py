"""Checkpoints of one stage: items state, ema, data and meta, written by Orbax.

A checkpoint appears under its final name only when it is whole. `ema` is an item of its
own, so that sampling reads nothing else. `data` says how many examples were seen, from
which the place in the data follows. `meta` holds checksums of every array, by which a
damaged checkpoint is found out; the one before is used then.
"""

import contextlib
import errno
import itertools
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from flowtok_jax.runtime import processes
from flowtok_jax.runtime.digests import checksums
from flowtok_jax.runtime.errors import StoreError, UserError, WriteError
from flowtok_jax.runtime.files import Place, absolute, is_remote, reaching, write_json
from flowtok_jax.tasks.state import TrainState
from flowtok_jax.weights.workdir import CHECKPOINTS

DAMAGED = "damaged"
NO_SPACE = os.strerror(errno.ENOSPC)
# Raised where a damaged checkpoint is read; the same types come where TensorStore could
# not read at all, and then name one of OUTAGE.
DAMAGE = (ValueError, KeyError, TypeError, FileNotFoundError, NotADirectoryError)
OUTAGE = (
    "UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED"
)


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its question whether the run was asked to end.

    runtime/processes.py asks that, and JAX wants the numbers of these questions to rise
    by one: Orbax's, which are steps, must not come in between.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C back until the end of the block.

    Orbax, cut short, leaves threads behind that fill the terminal with tracebacks.
    """
    # Python lets only the main thread set signal handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = []
    before = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    # To whoever listens, and not as a signal again, which would count as a second one.
    for _ in asked if callable(before) else []:
        before(signal.SIGINT, None)


class Checkpoints:
    """Saves and restores the states of one stage; a context manager.

    Args:
        keep: number of newest checkpoints that stay.
        keep_every: checkpoints of multiples of this step stay too; 0 for none.
    """

    def __init__(self, workdir: Place, stage: str, *, keep: int, keep_every: int = 0):
        self._workdir = workdir
        self._stage = stage
        self._folder = absolute(workdir / CHECKPOINTS / stage)
        policies = [checkpoint_managers.LatestN(keep)]
        if keep_every:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,  # left by a run killed while it wrote
        )
        with reaching(self._folder):
            if processes.is_first():  # before the manager removes them
                self._report_half_written()
            self._manager = _Manager(self._folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        with uninterrupted(), self._complaining():
            self._manager.close()

    def _report_half_written(self) -> None:
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.is_dir() and not ocp.utils.is_checkpoint_finalized(path):
                logging.warning("%s was never finished; it is removed", path)

    @contextlib.contextmanager
    def _complaining(self) -> Iterator[None]:
        """Turns a failure to write, of this save or of the one before, into a line.

        Orbax writes on a thread: what goes wrong there is raised by the next call.
        """
        try:
            with reaching(self._folder):
                yield
        except StoreError:
            raise
        except (OSError, ValueError) as error:
            whole = sorted(ocp.utils.checkpoint_steps(self._folder))
            rest = "there is none"
            if whole:
                rest = f"that of step {whole[-1]} is whole"
            reason = _reason(error)
            cure = "make room" if reason == NO_SPACE else "mend that"
            raise WriteError(
                f"a checkpoint of {self._stage} could not be written to {self._folder}"
                f" ({reason}); {rest}; {cure}, and the same command goes on"
            ) from error

    def save(self, state: TrainState, meta: dict[str, Any], examples: int) -> None:
        """Starts writing; the caller may go on at once.

        Raises:
            WriteError: where this one or the one before could not be written.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_items(state)["state"]),
            ema=ocp.args.StandardSave(state.ema),
            data=ocp.args.JsonSave({"examples_seen": examples}),
            meta=ocp.args.JsonSave({**meta, "checksums": _sums(state)}),
        )
        # By force: the loop decides when, and Orbax has no policy of its own.
        with uninterrupted(), self._complaining():
            self._manager.save(int(state.step), args=items, force=True)

    def read_meta(self) -> dict[str, Any] | None:
        """Reads the meta of the newest checkpoint; None where there is none to read."""
        step = self._manager.latest_step()
        try:
            return None if step is None else self._read_meta(step)
        except (OSError, ValueError):
            return None  # a damaged one is `restore`'s to report

    def _item(self, step: int, name: str) -> epath.Path:
        return epath.Path(self._folder) / str(step) / name

    def _read_meta(self, step: int) -> dict[str, Any]:
        handler = ocp.JsonCheckpointHandler()
        with uninterrupted():
            path = self._item(step, "meta")
            return handler.restore(path, args=ocp.args.JsonRestore())

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
        """Reads the newest whole state, laid out as `abstract` says, and its meta.

        A damaged checkpoint is reported and put aside, and the one before it used: in
        all processes alike, though each of them reads its own part only.

        Returns:
            None where there never was one.

        Raises:
            UserError: where there are checkpoints and all of them are damaged.
        """
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, reason = self._try(step, abstract)
            # One process's damage is everyone's: all have to go on from one step.
            if processes.total(np.array([found is None]))[0]:
                reason = reason or "another process found it damaged"
            elif _sums(found[0]) != found[1]["checksums"]:
                reason = "its arrays are not those that were saved"
            else:
                self._put_aside(damaged)
                return found
            damaged[step] = reason
            logging.warning("checkpoint %s: %s", self._folder / str(step), reason)
        if not damaged:
            return None
        raise UserError(
            f"no checkpoint in {self._folder} can be read: step {max(damaged)} "
            f"({damaged[max(damaged)]}); move the folder away to train from the start"
        )

    def _try(
        self, step: int, abstract: TrainState
    ) -> tuple[tuple[TrainState, dict], None] | tuple[None, str]:
        """Reads a state and its meta; else says why this process finds them damaged.

        By Orbax's handlers and not its manager, which would wait for the others: they
        may have found no damage, and wait for nothing.
        """
        try:
            meta = self._read_meta(step)
            items = {}
            for name, tree in _items(abstract).items():
                handler = ocp.StandardCheckpointHandler()
                with uninterrupted():
                    wanted = ocp.args.StandardRestore(tree)
                    items[name] = handler.restore(self._item(step, name), args=wanted)
            # A task's own state may be a subclass with more fields.
            return (type(abstract)(**items["state"], ema=items["ema"]), meta), None
        except Exception as error:
            if isinstance(error, DAMAGE) and not re.search(OUTAGE, str(error)):
                return None, _reason(error)
            if is_remote(self._folder):
                raise StoreError(f"{self._folder}: {_reason(error)}") from error
            raise

    def _put_aside(self, damaged: dict[int, str]) -> None:
        """Moves damaged checkpoints out of the way of those that will come."""
        if not damaged:
            return

        def move():
            for step in damaged:
                folder = self._workdir / DAMAGED / self._stage
                tries = itertools.count(1)
                place = folder / str(step)
                # The same step may have been damaged before, and trained again.
                while place.exists():
                    place = folder / f"{step}.{next(tries)}"
                # Says why; and a bucket has a folder only where there is a file.
                why = place.with_name(f"{place.name}.json")
                write_json(why, {"damage": damaged[step]})
                (self._folder / str(step)).rename(place)
                logging.warning(
                    "checkpoint of %s step %d is damaged, moved to %s; the one before "
                    "it is used",
                    self._stage,
                    step,
                    place,
                )

        processes.first_does(move)
        self._manager.reload()


def _reason(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if getattr(error, "errno", None) == errno.ENOSPC or "RESOURCE_EXHAUSTED" in text:
        return NO_SPACE
    return text[:160]


def _sums(state: TrainState) -> list[int]:
    return np.asarray(checksums(_items(state))).tolist()


def _items(state: TrainState) -> dict[str, Any]:
    """Splits a state, or a state of shapes, by item, always in the same order."""
    fields = {f: getattr(state, f) for f in type(state).__dataclass_fields__}
    return {"ema": fields.pop("ema"), "state": fields}


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Adds to each shape the sharding of its array."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
    )
