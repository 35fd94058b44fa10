"""Cleaning of captions before they are spelled in tokens, as open_clip does it.

The release encodes captions with open_clip's tokenizer (REFERENCE.md section 1), which
mends mojibake and typographic characters, resolves HTML entities, collapses white space
and lowers the case.
"""

import html

import ftfy

OPEN_CLIP = "open_clip"


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
