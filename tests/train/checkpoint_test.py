import signal
import threading

import pytest

from flowtok_jax.train.checkpoint import Checkpoints, uninterrupted


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
