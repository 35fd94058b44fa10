"""The steps of a stage as they are seen on a terminal or in a file of log lines."""

import datetime
import io
import logging
import sys
import time
from collections.abc import Iterable, Mapping

import rich.console
import rich.progress
import rich.text

COLLAPSED_SIGMA = 0.5  # a healthy text source stays near 1
RISING = 0.02  # by so much a source's sigma grows where it is about to recover
LINE_SECONDS = 15.0  # between two lines where there is no terminal for a bar
RATE_SECONDS = 600.0  # over which speed and time left are estimated
REDRAWS = 4  # a second
NOTEBOOK_WIDTH = 88  # columns of a bar in a notebook


class Progress:
    """A bar on a terminal or in a notebook, else a line now and then, of a stage.

    A thread of its own draws the bar, so that its seconds pass while a step compiles;
    in a notebook it is drawn with the steps. A context manager.

    Args:
        shows: false in processes that say nothing.
    """

    def __init__(self, stage: str, num_steps: int, shows: bool = True):
        self._stage = stage
        self._num_steps = num_steps
        console = rich.console.Console(stderr=True, highlight=False)
        is_bar = shows and sys.stderr.isatty() and not console.is_dumb_terminal
        if is_bar:
            console = rich.console.Console(
                stderr=True, highlight=False, force_terminal=True
            )
        self._display = _Display(console, is_bar)
        self._display.add_task(f"{stage:<14}", total=num_steps, speed="")
        self._cell = _Cell() if shows and console.is_jupyter else None
        # A file or a pipe gets lines, where a bar would be one endless line.
        self._lines = shows and not is_bar and self._cell is None
        self._last_line = time.monotonic()

    @property
    def _task(self) -> rich.progress.Task:
        return self._display.tasks[0]

    def __enter__(self) -> "Progress":
        self._display.start()
        # A process that is killed could not bring it back.
        self._display.console.show_cursor(True)
        return self

    def __exit__(self, *exception) -> None:
        self._display.stop()
        self._draw_in_cell(at_once=True)

    def _draw_in_cell(self, at_once: bool = False) -> None:
        if self._cell is not None and (at_once or self._cell.is_due()):
            self._cell.show(self._display.get_renderables())

    def begin(self, step: int) -> None:
        """Notes the step at which training goes on, whose program compiles first."""
        # Not `update`, which would take the steps before for work of this run.
        self._task.completed = step
        self.doing("compiling the step; this may take minutes")
        if self._lines:
            logging.info("%s: compiling the step", self._stage)

    def doing(self, what: str) -> None:
        """Shows what is done in between, until the next step; lines leave it out."""
        self._display.note = what
        self._draw_in_cell(at_once=True)

    def update(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows a step and its scalars."""
        self._display.update(self._task.id, completed=step)
        rate = _rate(self._task.speed)
        images = scalars.get("perf/images_per_sec")
        speed = "" if images is None else f"{images:.0f} images/s"
        loss = _losses(scalars)
        self._display.note = ", ".join(filter(None, (loss, speed)))
        self._display.update(self._task.id, speed=rate)
        self._draw_in_cell()
        waited = time.monotonic() - self._last_line > LINE_SECONDS
        if not self._lines or not (waited or step == self._num_steps):
            return
        self._last_line = time.monotonic()
        parts = [loss, rate, speed]
        if left := self._task.time_remaining:
            parts.append(f"{datetime.timedelta(seconds=left)} left")
        line = ", ".join(filter(None, parts))
        logging.info("%s %d/%d  %s", self._stage, step, self._num_steps, line)


class _Display(rich.progress.Progress):
    """A bar with a note below."""

    def __init__(self, console: rich.console.Console, is_shown: bool):
        self.note = ""
        super().__init__(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[speed]}", markup=False),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(compact=True),
            console=console,
            disable=not is_shown,
            expand=True,  # to the width of the terminal, also where that changes
            refresh_per_second=REDRAWS,
            redirect_stdout=False,  # it may be a pipe
            speed_estimate_period=RATE_SECONDS,
            get_time=time.monotonic,
        )

    def get_renderables(self) -> Iterable[rich.console.RenderableType]:
        """Yields the bar, and the note wrapped at the terminal's width."""
        yield from super().get_renderables()
        if self.note:
            yield rich.text.Text(f"  {self.note}", overflow="fold")


class _Cell:
    """A place among a notebook's outputs, whose newest drawing replaces the last one.

    Rich's own bars need ipywidgets there, whose outputs no stored notebook shows.
    """

    def __init__(self):
        from IPython import display  # noqa: PLC0415 - only where a notebook runs

        self._handle = display.DisplayHandle()
        self._handle.display({"text/plain": ""}, raw=True)
        self._drawn = 0.0

    def is_due(self) -> bool:
        """Returns whether the last drawing is old enough for another one."""
        return time.monotonic() - self._drawn > 1 / REDRAWS

    def show(self, lines: Iterable[rich.console.RenderableType]) -> None:
        """Draws lines as a terminal would, in the same place again."""
        self._drawn = time.monotonic()
        console = rich.console.Console(
            file=io.StringIO(),
            record=True,
            width=NOTEBOOK_WIDTH,
            force_jupyter=False,
            force_terminal=True,
        )
        console.print(*lines, sep="")
        page = console.export_html(
            inline_styles=True, clear=False, code_format="<pre>{code}</pre>"
        )
        drawn = {"text/html": page, "text/plain": console.export_text()}
        self._handle.update(drawn, raw=True)


def _rate(speed: float | None) -> str:
    """Formats steps a second, of slow ones the seconds a step."""
    if not speed:
        return ""
    return f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s/step"


def _losses(scalars: Mapping[str, float]) -> str:
    """Formats the loss with its terms."""
    total = "loss/total"
    terms = [
        f"{name.removeprefix('loss/')} {value:.3g}"
        for name, value in scalars.items()
        if name.startswith("loss/") and name != total
    ]
    # A single term is the loss itself.
    shown = f" ({', '.join(terms)})" if len(terms) > 1 else ""
    return f"loss {scalars[total]:.4f}{shown}"


class SourceWatch:
    """A watch over the spread of a trained source, which warns of its collapse once.

    A fresh projector may start with a low spread, which the KL term raises. Only a low
    one that warm-up is long over for, and that does not rise, is a collapse.

    Args:
        patience: steps of warm-up, and as many more for which the spread has to be low.
    """

    def __init__(self, stage: str, patience: int):
        self._stage = stage
        self._patience = patience
        self._low: tuple[int, float] | None = None  # step and sigma that it began with
        self._warned = False

    def see(self, step: int, scalars: Mapping[str, float]) -> None:
        """Looks at the scalars of a step."""
        # Only tasks that train the source of their flow have this scalar.
        sigma = scalars.get("source/sigma", 1.0)
        if sigma >= COLLAPSED_SIGMA or step < self._patience:
            self._low = None
            return
        self._low = self._low or (step, sigma)
        began, before = self._low
        if self._warned or step - began < self._patience:
            return
        if sigma > before + RISING:
            self._low = (step, sigma)
            return
        self._warned = True
        logging.warning(
            "the text source has collapsed: source/sigma is %.2f at step %d and does "
            "not rise, expected > %.1f; loss/flow falls while samples get worse; raise "
            "loss.%s.kl_weight",
            sigma,
            step,
            COLLAPSED_SIGMA,
            self._stage,
        )
