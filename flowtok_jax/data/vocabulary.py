"""Vocabularies between captions and ids: CLIP's byte pairs, or one trained on captions.

Ids are [start,] tokens, end, then 0: padding is 0 as in open_clip, not the end token
as in transformers. CLIP's vocabulary has a start token, a trained one has none.
"""

import logging
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, to_place, write_bytes

START = "<|startoftext|>"
END = "<|endoftext|>"
UNKNOWN = "<unk>"
PAD_ID = 0
VOCABULARY = "vocabulary.json"
SHOWN = 200  # characters of a caption in a warning


class Vocabulary:
    """Encoder of captions to `context` ids each, and decoder of such ids."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, context: int):
        self.tokenizer = tokenizer
        self.context = context
        self.start_id = tokenizer.token_to_id(START)
        self.end_id = tokenizer.token_to_id(END)
        self.unknown_id = tokenizer.token_to_id(UNKNOWN)
        if self.end_id is None:
            raise UserError(f"the vocabulary has no end token {END!r}")

    @classmethod
    def train(
        cls, captions: Iterable[str], vocab_size: int, context: int
    ) -> "Vocabulary":
        """Trains a vocabulary of the most frequent words of captions."""
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token=UNKNOWN))
        tokenizer.normalizer = tokenizers.normalizers.Lowercase()
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        trainer = tokenizers.trainers.WordLevelTrainer(
            vocab_size=vocab_size,
            special_tokens=["<pad>", END, UNKNOWN],  # the first one has id 0, PAD_ID
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer, context)

    @classmethod
    def read(cls, file: Place, context: int) -> "Vocabulary":
        """Reads a file `vocabulary.json`."""
        return cls(tokenizers.Tokenizer.from_buffer(file.read_bytes()), context)

    @classmethod
    def load(cls, source: str, context: int) -> "Vocabulary":
        """Loads a vocabulary.json, a directory with one or with CLIP's tokenizer files,
        or a hub id.
        """
        path = to_place(source)
        file = path / VOCABULARY if path.is_dir() else path
        if file.is_file():
            return cls.read(file, context)
        import transformers  # slow to import, and needed only here

        try:
            clip = transformers.CLIPTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise UserError(
                f"text.vocabulary is {source!r}: neither a {VOCABULARY}, nor a "
                "directory with CLIP's tokenizer files, nor a hub id that can be "
                "reached"
            ) from error
        return cls(clip.backend_tokenizer, context)

    def save(self, directory: Place) -> None:
        """Writes vocabulary.json, whole or not at all."""
        write_bytes(directory / VOCABULARY, self.tokenizer.to_str(pretty=True).encode())

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, captions: Sequence[str], *, warns: bool = True) -> np.ndarray:
        """Encodes captions to ids [b, context], int32.

        Args:
            warns: whether captions cut short and unknown words are logged.
        """
        ids = np.full((len(captions), self.context), PAD_ID, np.int32)
        tokenizer = self.tokenizer
        # The fast method finds no offsets, which only the warnings need.
        encode = tokenizer.encode_batch if warns else tokenizer.encode_batch_fast
        encodings = encode(captions, add_special_tokens=False)
        start = [] if self.start_id is None else [self.start_id]
        room = self.context - 1 - len(start)  # one place is the end token's
        for row, caption, encoding in zip(ids, captions, encodings, strict=True):
            if warns:
                self._warn(caption, encoding, room)
            tokens = [*start, *encoding.ids[:room], self.end_id]
            row[: len(tokens)] = tokens
        return ids

    def _warn(self, caption: str, encoding: tokenizers.Encoding, room: int) -> None:
        if len(encoding.ids) > room:
            logging.warning(
                "caption has %d tokens and was cut to %d: %r",
                len(encoding.ids),
                room,
                textwrap.shorten(caption, SHOWN),
            )
        if self.unknown_id in encoding.ids:
            spans = zip(encoding.ids, encoding.offsets, strict=True)
            words = [caption[a:b] for i, (a, b) in spans if i == self.unknown_id]
            logging.warning(
                "caption has words that the vocabulary lacks, %s: %r",
                textwrap.shorten(", ".join(words), SHOWN),
                textwrap.shorten(caption, SHOWN),
            )

    def decode(self, ids: np.ndarray) -> list[str]:
        """Decodes ids [b, n], each row up to its first end token."""
        # Id 0 is padding in a trained vocabulary, and the token "!" in CLIP's.
        dropped = PAD_ID if self.start_id is None else self.start_id
        texts = []
        for row in np.asarray(ids).tolist():
            row = row[: row.index(self.end_id)] if self.end_id in row else row
            row = [i for i in row if i != dropped]
            texts.append(self.tokenizer.decode(row, skip_special_tokens=False).strip())
        return texts
