"""What a person sees while a stage trains."""

import logging
import sys
import time

import tqdm

COLLAPSED_SIGMA = 0.5
LINE_SECONDS = 15.0


class Progress:
    """A bar on a terminal, else a line now and then; warns of a collapsed source."""

    def __init__(self, stage: str, step: int, num_steps: int, shows: bool):
        self._stage, self._num_steps, self._warned = stage, num_steps, False
        self._bar = tqdm.tqdm(
            desc=f"{stage:<14}",
            initial=step,
            total=num_steps,
            unit="step",
            disable=not (shows and sys.stderr.isatty()),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"
            "{postfix} [{elapsed}<{remaining}]",
        )
        self._lines = shows and self._bar.disable
        self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def update(self, step: int, scalars: dict[str, float]) -> None:
        """Shows a step and its scalars."""
        text = f"loss {scalars['loss/total']:.4f}"
        if "perf/images_per_sec" in scalars:
            text += f", {scalars['perf/images_per_sec']:.0f} images/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)
        due = (
            time.monotonic() - self._last_line > LINE_SECONDS or step == self._num_steps
        )
        if self._lines and due:
            self._last_line = time.monotonic()
            logging.info("%s %d/%d  %s", self._stage, step, self._num_steps, text)
        sigma = scalars.get("source/sigma", 1.0)
        if sigma < COLLAPSED_SIGMA and not self._warned:
            self._warned = True
            logging.warning(
                "the text source has collapsed: source/sigma is %.2f at step %d, "
                "wanted > %.1f; loss/flow falls while samples get worse; raise "
                "loss.t2i.kl_weight",
                sigma,
                step,
                COLLAPSED_SIGMA,
            )
