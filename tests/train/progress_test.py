import logging

import pytest

from flowtok_jax.train import log
from flowtok_jax.train.log import Progress


def scalars(**more):
    return {"loss/total": 1.25, "perf/images_per_sec": 320.0} | more


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_a_collapsed_source_is_warned_of_once(caplog):
    with caplog.at_level(logging.INFO), Progress("t2i", 0, 100, True) as bar:
        bar.update(2, scalars(**{"source/sigma": 0.6}))
        assert warnings_of(caplog) == []
        for step in (4, 6, 8):
            bar.update(step, scalars(**{"source/sigma": 0.123}))
    (message,) = warnings_of(caplog)
    assert "source/sigma is 0.12 at step 4" in message
    assert "loss.t2i.kl_weight" in message


def test_a_stage_without_source_never_warns(caplog):
    with caplog.at_level(logging.INFO), Progress("i2t", 0, 4, True) as bar:
        bar.update(4, scalars())
    assert warnings_of(caplog) == []


def test_without_a_terminal_a_line_comes_now_and_then_and_at_the_end(
    caplog, monkeypatch
):
    now = 0.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO), Progress("t2i", 0, 40, True) as bar:
        for step in range(10, 50, 10):
            now += 0.6 * log.LINE_SECONDS
            bar.update(step, scalars())
    steps = [message.split()[1] for message in caplog.messages]
    assert steps == ["20/40", "40/40"]
    assert "loss 1.2500, 320 images/s" in caplog.messages[0]


def test_a_process_that_shows_nothing_says_nothing(caplog):
    with caplog.at_level(logging.INFO), Progress("t2i", 0, 4, False) as bar:
        bar.update(4, scalars())
    assert caplog.messages == []


@pytest.mark.parametrize("shows", [True, False])
def test_a_terminal_gets_a_bar_instead_of_lines(caplog, capsys, monkeypatch, shows):
    monkeypatch.setattr(log.sys.stderr, "isatty", lambda: True, raising=False)
    with caplog.at_level(logging.INFO), Progress("t2i", 2, 4, shows) as bar:
        bar.update(4, scalars())
    assert caplog.messages == []
    text = capsys.readouterr().err
    assert ("4/4" in text) == ("loss 1.2500, 320 images/s" in text) == shows
