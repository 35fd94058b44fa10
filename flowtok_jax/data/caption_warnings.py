"""Warnings of what is lost of captions when they are encoded."""

import logging
import textwrap
from collections.abc import Sequence

import tokenizers

SHOWN = 200  # characters of a caption, or of words


class CaptionWarnings:
    """Warnings of one vocabulary: each caption's once, those of a call in one line."""

    def __init__(self):
        self._said: set[str] = set()

    def say(
        self,
        captions: Sequence[str],
        encodings: Sequence[tokenizers.Encoding],
        room: int,
        unknown_id: int | None,
    ) -> None:
        """Logs which captions are cut to `room` tokens, and which words are unknown."""
        pairs = dict(zip(captions, encodings, strict=True))
        # An evaluation encodes the same captions for each of its parts.
        new = {c: e for c, e in pairs.items() if c not in self._said}
        cut = {c: len(e.ids) for c, e in new.items() if len(e.ids) > room}
        lacking = {c: e for c, e in new.items() if unknown_id in e.ids}
        self._said.update(cut, lacking)
        if cut:
            first = textwrap.shorten(next(iter(cut)), SHOWN)
            most = max(cut.values())
            who = f"caption has {most} tokens and was"
            if len(cut) > 1:
                who = f"{len(cut)} captions have up to {most} tokens and were"
            logging.warning("%s cut to %d: %r", who, room, first)
        if lacking:
            # A word that many captions share is named once.
            words = [w for c, e in lacking.items() for w in _unknown(c, e, unknown_id)]
            listed = textwrap.shorten(", ".join(dict.fromkeys(words)), SHOWN)
            first = textwrap.shorten(next(iter(lacking)), SHOWN)
            who = "caption has"
            if len(lacking) > 1:
                who = f"{len(lacking)} captions have"
            what = "words that the vocabulary lacks"
            logging.warning("%s %s, %s: %r", who, what, listed, first)


def _unknown(
    caption: str, encoding: tokenizers.Encoding, unknown_id: int | None
) -> list[str]:
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    return [caption[a:b] for i, (a, b) in spans if i == unknown_id]
