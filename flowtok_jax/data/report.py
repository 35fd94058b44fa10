"""Report on a data set: sizes, captions and rejects, as JSON and as a short table."""

import array
import collections
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowtok_jax.data.captions import LINE_END
from flowtok_jax.data.records import Record, RejectCounter

WIDTH = 80  # columns of the table
# Arrays of machine numbers, as lists of a million objects would fill the memory.
MEASURES = {
    "width": "I",
    "height": "I",
    "aspect (height/width)": "f",
    "image bytes": "Q",
    "captions a record": "I",
    "characters a caption": "I",
    "words a caption": "I",
    "lines a caption": "I",
}
POINTS = {"min": 0, "5 %": 5, "median": 50, "95 %": 95, "max": 100}


class DataReport:
    """Report on a data set, collected record by record."""

    def __init__(self):
        self._values = {name: array.array(code) for name, code in MEASURES.items()}
        # Stops no run, and counts records of one name each.
        self.rejects = RejectCounter(max_fraction=1.0, known=0)
        self.records = 0
        self.passed_over: Mapping[str, int] = {}  # what is of no record, by kind
        self.formats: collections.Counter[str] = collections.Counter()

    def add(self, record: Record, size: tuple[int, int] | None, kind: str) -> None:
        """Adds a record.

        Args:
            size: (width, height) of the record's image, if it has one.
            kind: format of the image, or "latents".
        """
        self.records += 1
        self.formats[kind] += 1
        captions = record.captions + record.recaptions
        values: dict[str, list[float]] = {
            "captions a record": [len(captions)],
            "characters a caption": [len(text) for text in captions],
            "words a caption": [len(text.split()) for text in captions],
            "lines a caption": [len(LINE_END.split(text)) for text in captions],
        }
        if size is not None and record.image is not None:
            width, height = size
            values |= {"width": [width], "height": [height]}
            values["aspect (height/width)"] = [height / width]
            values["image bytes"] = [len(record.image)]
        for name, numbers in values.items():
            self._values[name].extend(numbers)

    def summary(self) -> dict[str, Any]:
        """Returns all counts and measures, for JSON."""
        return {
            "records": self.records,
            **self.rejects.summary(),
            "passed_over": dict(self.passed_over),
            "formats": dict(self.formats.most_common()),
            "measures": {
                name: _spread(np.asarray(values))
                for name, values in self._values.items()
                if values
            },
        }

    def table(self) -> str:
        """Formats the summary on lines of at most 80 columns."""
        summary = self.summary()
        formats = ", ".join(f"{v} {k}" for k, v in summary["formats"].items())
        head = f"records: {self.records} ({formats})"
        lines = [*textwrap.wrap(head, WIDTH), ""]
        lines.append(f"{'':24}" + "".join(f"{p:>10}" for p in POINTS))
        for name, spread in summary["measures"].items():
            cells = "".join(f"{_short(spread[p]):>10}" for p in POINTS)
            lines.append(f"{name:24}{cells}")
        if summary["rejected"]:
            lines += ["", "rejected"]
        for reason, count in summary["rejected"].items():
            head = f"  {reason:20}{count:>10}  "
            lines.append(head + _tail(summary["first"][reason][0], WIDTH - len(head)))
        if self.passed_over:
            lines += ["", "of no record"]
        for kind, count in self.passed_over.items():
            lines.append(f"  {kind:28}{count:>10}")
        return "\n".join(lines)


def _spread(values: np.ndarray) -> Mapping[str, float]:
    points = np.percentile(values, list(POINTS.values())).tolist()
    return {**dict(zip(POINTS, points, strict=True)), "mean": float(values.mean())}


def _short(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.2f}"


def _tail(text: str, room: int) -> str:
    """Cuts a name to its end, which tells more than its beginning."""
    return text if len(text) <= room else "..." + text[3 - room :]
