"""What a terminal and a log file see of a stage, and when a source has collapsed."""

import logging
import time

import pytest

from flowtok_jax.train import progress
from flowtok_jax.train.progress import Progress, SourceWatch

TERMS = {"loss/flow": 1.0, "loss/kl": 2.5e-7, "loss/total": 1.25}


def shown(**more):
    return {"loss/total": 1.25, "perf/images_per_sec": 320.0} | more


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def on_terminal(monkeypatch):
    """Makes stderr a terminal of 80 columns in a test, where capsys has replaced it."""
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    for name, value in {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)


def test_without_a_terminal_a_line_comes_now_and_then_and_at_the_end(caplog, clock):
    with caplog.at_level(logging.INFO), Progress("t2i", 40) as bar:
        bar.begin(0)
        for step in range(10, 50, 10):
            clock[0] += 10.0
            bar.doing("a preview")
            bar.update(step, shown(**TERMS))
    first, *rest = caplog.messages
    assert first == "t2i: compiling the step"
    assert [message.split()[1] for message in rest] == ["20/40", "40/40"]
    assert rest[0] == (
        "t2i 20/40  loss 1.2500 (flow 1, kl 2.5e-07), 1.0 steps/s, 320 images/s, "
        "0:00:20 left"
    )
    assert "left" not in rest[1]


def test_compiling_counts_in_no_speed_and_steps_before_neither(caplog, clock):
    with caplog.at_level(logging.INFO), Progress("t2i", 1000) as bar:
        bar.begin(500)
        for step, seconds in ((510, 300.0), (520, 20.0)):
            clock[0] += seconds
            bar.update(step, shown())
    assert "2.0 s/step" in caplog.messages[-1]
    assert "0:16:00 left" in caplog.messages[-1]


def test_a_process_that_shows_nothing_says_nothing(caplog, capsys, monkeypatch):
    on_terminal(monkeypatch)
    with caplog.at_level(logging.INFO), Progress("t2i", 4, shows=False) as bar:
        bar.begin(0)
        bar.update(4, shown())
    assert caplog.messages == []
    assert "4/4" not in capsys.readouterr().err


def test_a_terminal_gets_a_bar_of_its_width_instead_of_lines(
    caplog, capsys, monkeypatch
):
    on_terminal(monkeypatch)
    with caplog.at_level(logging.INFO), Progress("text_tokenizer", 4) as bar:
        bar.begin(2)
        bar.update(4, shown(**TERMS))
    assert caplog.messages == []
    text = capsys.readouterr().err
    assert "4/4" in text
    assert "loss 1.2500 (flow 1, kl 2.5e-07), 320 images/s" in text
    plain = progress.rich.text.Text.from_ansi(text.replace("\r", "\n")).plain
    assert max(len(line) for line in plain.splitlines()) <= 80


def test_the_bar_moves_while_the_main_thread_waits(capsys, monkeypatch):
    on_terminal(monkeypatch)
    with Progress("t2i", 4) as bar:
        bar.begin(0)
        time.sleep(1.2)  # as a program that compiles
        before = capsys.readouterr().err
    assert "compiling the step" in before
    assert "0:00:00" in before
    assert "0:00:01" in before


def test_a_dumb_terminal_gets_lines(caplog, capsys, monkeypatch):
    on_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with caplog.at_level(logging.INFO), Progress("t2i", 4) as bar:
        bar.update(4, shown())
    assert "4/4" in caplog.text
    assert capsys.readouterr().err == ""


def seen(caplog, patience, sigmas):
    """The warnings of a watch that sees a sigma every ten steps."""
    watch = SourceWatch("t2i", patience)
    with caplog.at_level(logging.WARNING):
        for i, sigma in enumerate(sigmas):
            watch.see(10 * (i + 1), {"source/sigma": sigma})
    return caplog.messages


def test_a_source_low_after_warm_up_that_does_not_rise_is_warned_of_once(caplog):
    (message,) = seen(caplog, 20, [0.6, 0.2, 0.2, 0.123, 0.1, 0.1, 0.1])
    assert "source/sigma is 0.12 at step 40" in message
    assert "loss.t2i.kl_weight" in message


def test_without_warm_up_a_low_source_is_warned_of_at_once(caplog):
    (message,) = seen(caplog, 0, [0.4])
    assert "source/sigma is 0.40 at step 10" in message


@pytest.mark.parametrize(
    "sigmas",
    [
        [0.3, 0.47, 0.64, 0.7, 0.7, 0.7],  # the demo's, in warm-up
        [0.9, 0.9, 0.4, 0.45, 0.5, 0.6],  # low for a moment
        [0.1, 0.1, 0.1, 0.2, 0.3, 0.4],  # rises
        [0.8] * 6,
    ],
)
def test_a_source_that_is_or_becomes_healthy_is_no_alarm(caplog, sigmas):
    assert seen(caplog, 20, sigmas) == []


def test_a_stage_without_a_source_never_warns(caplog):
    watch = SourceWatch("i2t", 0)
    watch.see(10, shown())
    assert caplog.messages == []


def test_in_a_notebook_one_place_shows_the_newest_bar(monkeypatch, clock, caplog):
    display = pytest.importorskip("IPython.display", reason="needs the extra notebooks")
    shows = []

    class Handle:
        def display(self, bundle, raw):
            assert not shows

        def update(self, bundle, raw):
            assert raw
            shows.append(bundle)

    monkeypatch.setattr(display, "DisplayHandle", Handle)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with caplog.at_level(logging.INFO), Progress("t2i", 40) as bar:
        bar.begin(0)
        assert "compiling" in shows[-1]["text/plain"]
        for step in range(1, 41):
            clock[0] += 0.1
            bar.update(step, shown(**TERMS))
    assert "40/40" in shows[-1]["text/plain"]
    assert "kl 2.5e-07" in shows[-1]["text/plain"]
    assert shows[-1]["text/html"].startswith("<pre>")
    # Not with each step, of which there may be a hundred a second.
    assert 10 < len(shows) < 25
    assert not caplog.messages
