"""Checkpoints: saving, retention, damage, and a Ctrl-C in between."""

import errno
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from flowtok_jax.runtime.digests import checksums
from flowtok_jax.runtime.errors import UserError, WriteError
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.tasks.state import TrainState, make_state
from flowtok_jax.train.checkpoint import Checkpoints, uninterrupted
from flowtok_jax.weights.workdir import steps_of


def test_ctrl_c_takes_effect_at_the_end_of_a_save():
    before, done = signal.getsignal(signal.SIGINT), []

    def save():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("saved")
        done.append("gone on")

    with pytest.raises(KeyboardInterrupt):
        save()
    assert done == ["saved"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_of_a_save_is_seen_and_ctrl_c_works_again():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="full"), uninterrupted():
        raise OSError("disk full")
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_held_back():
    done = []

    def save():
        with uninterrupted():
            done.append("saved")

    thread = threading.Thread(target=save)
    thread.start()
    thread.join()
    assert done == ["saved"]


def test_there_is_no_meta_before_the_first_save(tmp_path):
    with Checkpoints(tmp_path, "t2i", keep=1) as checkpoints:
        assert checkpoints.read_meta() is None


def state(step: int, scale: float = 1.0) -> TrainState:
    """One like those that are trained, with values that tell its step."""
    kernel = scale * (step + jnp.arange(12.0).reshape(3, 4))
    params = {"net": {"kernel": kernel, "bias": jnp.full(4, scale * step)}}
    made = make_state(params, optax.adamw(1e-3), seed=0)
    return made.replace(step=jnp.asarray(step, jnp.int32))


def save(workdir, *steps, **options) -> None:
    with Checkpoints(workdir, "t2i", **{"keep": 10, **options}) as checkpoints:
        for step in steps:
            checkpoints.save(state(step), {"step": step}, examples=8 * step)


def restore(workdir):
    with Checkpoints(workdir, "t2i", keep=10) as checkpoints:
        return checkpoints.restore(jax.eval_shape(lambda: state(0)))


def files_of(workdir, step, item):
    folder = workdir / "checkpoints" / "t2i" / str(step) / item
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_newest_stay_and_those_of_every_so_many_steps(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, 6, 7, keep=2, keep_every=3)
    assert steps_of(tmp_path, "t2i") == [3, 6, 7]


def test_a_state_comes_back_with_its_meta(tmp_path):
    assert restore(tmp_path) is None
    save(tmp_path, 1, 2)
    found, meta = restore(tmp_path)
    assert meta["step"] == 2
    jax.tree.map(np.testing.assert_array_equal, found.params, state(2).params)
    assert int(found.step) == 2


def cut_short(workdir):
    path = max(files_of(workdir, 3, "state"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:10])


def without_metadata(workdir):
    (workdir / "checkpoints" / "t2i" / "3" / "state" / "_METADATA").unlink()


def without_meta(workdir):
    for path in files_of(workdir, 3, "meta"):
        path.write_text("{")


def other_weights(workdir):
    """Whole files, but not those that were saved with this meta."""
    if not (workdir / "other").exists():
        save(workdir / "other", 4)
    ema = workdir / "checkpoints" / "t2i" / "3" / "ema"
    shutil.rmtree(ema)
    shutil.copytree(workdir / "other" / "checkpoints" / "t2i" / "4" / "ema", ema)


@pytest.mark.parametrize(
    "damage", [cut_short, without_metadata, without_meta, other_weights]
)
def test_of_a_damaged_checkpoint_the_one_before_is_used(tmp_path, caplog, damage):
    save(tmp_path, 1, 2, 3)
    damage(tmp_path)
    found, meta = restore(tmp_path)
    assert int(found.step) == meta["step"] == 2
    assert "checkpoint of t2i step 3 is damaged, moved to" in caplog.text
    assert steps_of(tmp_path, "t2i") == [1, 2]
    assert (tmp_path / "damaged" / "t2i" / "3").is_dir()
    save(tmp_path, 3)  # its number is free again
    assert int(restore(tmp_path)[0].step) == 3
    damage(tmp_path)  # and damaged again
    assert int(restore(tmp_path)[0].step) == 2
    assert (tmp_path / "damaged" / "t2i" / "3.1").is_dir()


def test_what_is_no_damage_is_raised_and_moves_nothing(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise PermissionError("not yours")

    save(tmp_path, 1, 2)
    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
    with pytest.raises(PermissionError):
        restore(tmp_path)
    assert steps_of(tmp_path, "t2i") == [1, 2]


def test_where_all_are_damaged_nothing_is_moved_and_the_user_decides(tmp_path):
    save(tmp_path, 2, 3)
    for path in files_of(tmp_path, 2, "meta"):
        path.unlink()
    cut_short(tmp_path)
    with pytest.raises(UserError, match="no checkpoint in .*step 3.*move the folder"):
        restore(tmp_path)
    assert steps_of(tmp_path, "t2i") == [2, 3]


def test_one_that_was_never_finished_is_reported_and_removed(tmp_path, caplog):
    save(tmp_path, 1)
    left = tmp_path / "checkpoints" / "t2i" / "2.orbax-checkpoint-tmp-7"
    (left / "state").mkdir(parents=True)
    assert int(restore(tmp_path)[0].step) == 1
    assert f"{left} was never finished; it is removed" in caplog.text
    assert not left.exists()


def test_what_cannot_be_written_ends_in_a_line_that_names_the_last_whole_one(
    tmp_path, monkeypatch
):
    """A full disk itself is in tests/kill_test.py."""

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "no room")

    save(tmp_path, 1)
    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    message = "could not be written .*No space left on device.*of step 1 is whole"
    with pytest.raises(WriteError, match=message):
        save(tmp_path, 2)


def test_checksums_do_not_depend_on_where_arrays_lie_and_see_every_change():
    tree = {"a": jnp.arange(64.0).reshape(8, 8), "key": jax.random.key(3)}
    mesh = make_mesh(data=2, fsdp=4, tensor=1)
    spread = jax.NamedSharding(mesh, jax.P("fsdp", "data"))
    there = tree | {"a": jax.device_put(tree["a"], spread)}
    whole = checksums(tree)
    np.testing.assert_array_equal(checksums(there), whole)
    swapped = tree["a"].at[0, 1].set(2).at[0, 2].set(1)
    nearly = tree["a"].at[7, 7].set(np.nextafter(np.float32(63), np.float32(64)))
    for other in (swapped, nearly, tree["a"].T, -tree["a"]):
        assert checksums({"a": other, "key": tree["key"]})[0] != whole[0]
    assert checksums(tree | {"key": jax.random.key(4)})[1] != whole[1]
    half = {"a": jnp.arange(4.0, dtype=jnp.bfloat16)}
    assert checksums(half) != checksums({"a": half["a"].at[0].set(-0.0)})
