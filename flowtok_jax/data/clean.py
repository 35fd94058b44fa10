"""Cleaning of captions before they are spelled in tokens, as open_clip does it, and
joining of words and punctuation that tokens had apart.

The release encodes captions with open_clip's tokenizer (REFERENCE.md section 1), which
mends mojibake and typographic characters, resolves HTML entities, collapses white space
and lowers the case.
"""

import html
import re

import ftfy

OPEN_CLIP = "open_clip"
# Punctuation that stands between two words without spaces, after one, and before one.
JOINED = (
    (re.compile(r"(?<=\w) ([-'’/]) (?=\w)"), r"\1"),
    (re.compile(r"(?<=\w) ([,.;:!?)\]}])"), r"\1"),
    (re.compile(r"([(\[{]) (?=\w)"), r"\1"),
)


def clean_caption(caption: str) -> str:
    """Cleans a caption as open_clip does.

    A curly apostrophe becomes a straight one, `&amp;amp;` becomes `&`, full-width
    letters become plain ones.
    """
    # What ftfy would leave alone: most captions, which it would slow down threefold.
    if not (caption.isascii() and caption.isprintable() and "&" not in caption):
        caption = ftfy.fix_text(caption)
        # Twice, since captions from the web are often escaped twice.
        caption = html.unescape(html.unescape(caption))
    return " ".join(caption.split()).lower()


def join_punctuation(text: str) -> str:
    """Joins punctuation with its words, as English writes it: `medium - light skin` is
    medium-light skin.
    """
    for pattern, joined in JOINED:
        text = pattern.sub(joined, text)
    return text
