"""The words of a vocabulary that is trained on captions."""

import collections
import json
import re
from collections.abc import Iterable, Sequence

import tokenizers

COMPOUND = re.compile(r"\w+(?:-\w+)+")
# Uses from which on a compound is learned as a word of its own: in parts, the
# "medium-dark" of a caption holds the "dark" of another one, and a network takes them
# for each other (docs/emoji.md). A rarer one is understood by its parts.
LEAST_USES = 10


def find_compounds(captions: Iterable[str]) -> set[str]:
    """Finds the words with hyphens that captions use often, as "medium-dark"."""
    uses: collections.Counter[str] = collections.Counter()
    for caption in captions:
        if "-" in caption:
            uses.update(COMPOUND.findall(caption))
    return {word for word, count in uses.items() if count >= LEAST_USES}


def make_splitter(compounds: set[str]) -> tokenizers.pre_tokenizers.PreTokenizer:
    """Makes what splits a caption into words and punctuation, and compounds not."""
    if not compounds:
        return tokenizers.pre_tokenizers.Whitespace()
    # Longer ones first: of two that begin alike the longer one is meant.
    whole = "|".join(map(re.escape, sorted(compounds, key=lambda w: (-len(w), w))))
    return tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(rf"(?<![\w-])(?:{whole})(?![\w-])|\w+|[^\w\s]+"),
        "removed",
        invert=True,
    )


def train_words(
    captions: Sequence[str], vocab_size: int, special: Sequence[str], unknown: str
) -> tokenizers.Tokenizer:
    """Trains a tokenizer of the most frequent words and compounds of captions.

    Args:
        captions: cleaned ones.
        special: tokens that have the first ids, and are not found in captions.
        unknown: that of them which stands for other words.
    """
    compounds = find_compounds(captions)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token=unknown))
    tokenizer.pre_tokenizer = make_splitter(compounds)
    trainer = tokenizers.trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    # A compound for which there was no room is split, as its parts may be known.
    learned = compounds & tokenizer.get_vocab().keys()
    tokenizer.pre_tokenizer = make_splitter(learned)
    trained = json.loads(tokenizer.to_str())
    # An added token would be found in captions, a word of the model is not.
    trained["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(trained))
