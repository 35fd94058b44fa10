"""Vocabularies between captions and ids: CLIP's byte pairs, or one trained on captions.

Ids are [start,] tokens, end, then 0: padding is 0 as in open_clip, not the end token
as in transformers. CLIP's vocabulary has a start token, a trained one has none. The
texts of special tokens mean nothing in a caption: they are spelled as any other text.

vocabulary.json is {"cleaning": ..., "tokenizer": ...}: how captions are cleaned first,
and a tokenizer in the form of Hugging Face tokenizers. One that older versions wrote is
such a tokenizer alone, which cleans by itself, and keeps its meaning.
"""

import collections
import functools
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from flowtok_jax.data.caption_warnings import SHOWN, CaptionWarnings
from flowtok_jax.data.clean import OPEN_CLIP, clean_caption, join_punctuation
from flowtok_jax.data.words import train_words
from flowtok_jax.runtime import hub
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, json_sha256, to_place, write_bytes

START = "<|startoftext|>"
END = "<|endoftext|>"
UNKNOWN = "<unk>"
# Of a vocabulary trained on captions; the first one has id 0, PAD_ID.
SPECIAL_TOKENS = ("<pad>", END, UNKNOWN)
PAD_ID = 0
VOCABULARY = "vocabulary.json"

# Files of CLIP's vocabulary in a directory or a repository of the hub.
CLIP_FILES = ("vocab.json", "merges.txt", "tokenizer.json")
# How CLIP splits a caption before it pairs bytes, but for the special tokens.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# OpenAI's vocabulary, with which the release and every CLIP of this size was trained.
CLIP_TOKENS = 49408
CLIP_SHA256 = "ca43ac56fe977959af117fa9c700a0a2dd7eca2ed4bb5dd47cefee02b27bff36"


class CaptionCounts(NamedTuple):
    """Counts of what a vocabulary makes of captions.

    Attributes:
        tokens: of all captions, whole.
        unknown: how often each word comes that the vocabulary lacks.
        cut: number of captions longer than the context.
        words: number of different words, known or not; 0 of byte pairs.
    """

    captions: int
    tokens: int
    unknown: collections.Counter[str]
    cut: int
    words: int

    @property
    def unknown_share(self) -> float:
        """Share of the tokens that are unknown."""
        return self.unknown.total() / max(self.tokens, 1)

    @property
    def cut_share(self) -> float:
        """Share of the captions that are cut."""
        return self.cut / max(self.captions, 1)


class Vocabulary:
    """Encoder of captions to `context` ids each, and decoder of such ids.

    Args:
        cleaning: OPEN_CLIP, or "" where the tokenizer cleans captions by itself.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, context: int, cleaning: str = ""
    ):
        self.tokenizer = tokenizer
        self._warnings: CaptionWarnings | None = CaptionWarnings()
        self.context = context
        self.cleaning = cleaning
        self.start_id = tokenizer.token_to_id(START)
        self.end_id = tokenizer.token_to_id(END)
        self.unknown_id = tokenizer.token_to_id(UNKNOWN)
        if self.end_id is None:
            raise UserError(f"the vocabulary has no end token {END!r}")

    def quiet(self) -> "Vocabulary":
        """Returns it without warnings of captions, nor memory of those warned of."""
        found = Vocabulary(self.tokenizer, self.context, self.cleaning)
        found._warnings = None
        return found

    def with_context(self, context: int) -> "Vocabulary":
        """Returns it for captions of another number of ids."""
        return Vocabulary(self.tokenizer, context, self.cleaning)

    @classmethod
    def train(
        cls,
        captions: Iterable[str],
        vocab_size: int,
        context: int,
        has_start: bool = False,
    ) -> "Vocabulary":
        """Trains a vocabulary of the most frequent words of captions.

        Args:
            has_start: whether captions begin with a start token, as CLIP's do.
        """
        special = [*SPECIAL_TOKENS, *([START] if has_start else [])]
        cleaned = [clean_caption(caption) for caption in captions]
        tokenizer = train_words(cleaned, vocab_size, special, UNKNOWN)
        return cls(tokenizer, context, OPEN_CLIP)

    @classmethod
    def read(cls, file: Place, context: int) -> "Vocabulary":
        """Reads a file `vocabulary.json`.

        Raises:
            UserError: where the file is damaged, or something else.
        """
        content = _read_json(file)
        cleaning = content.get("cleaning", "")
        if cleaning not in ("", OPEN_CLIP):
            raise UserError(
                f"{file} cleans captions by {cleaning!r}, expected {OPEN_CLIP!r}: was "
                "it made by a newer version?"
            )
        stored = json.dumps(content.get("tokenizer", content))
        try:
            tokenizer = tokenizers.Tokenizer.from_str(stored)
        except Exception as error:  # tokenizers raise nothing narrower
            raise _damaged(file, error) from error
        return cls(tokenizer, context, cleaning)

    @classmethod
    def read_clip(cls, directory: Place, context: int) -> "Vocabulary":
        """Reads CLIP's vocabulary: vocab.json and merges.txt, or tokenizer.json.

        Raises:
            UserError: where neither exists, is whole, or has CLIP's special tokens.
        """
        vocab, merges, file = _read_pairs(directory)
        model = tokenizers.models.BPE
        try:
            # Without a token for unknown bytes: CLIP's would be the end token.
            pairs = model(vocab, merges, end_of_word_suffix="</w>")
            tokenizer = tokenizers.Tokenizer(pairs)
        except Exception as error:  # tokenizers raise nothing narrower
            raise _damaged(file, error) from error
        words = tokenizers.pre_tokenizers.Split(
            tokenizers.Regex(CLIP_WORDS), "removed", invert=True
        )
        as_bytes = tokenizers.pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=False
        )
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, as_bytes])
        decoders = tokenizers.decoders
        # Bytes first: the mark of a word's end is spelled in the same letters.
        steps = [decoders.ByteLevel(), decoders.Replace("</w>", " ")]
        tokenizer.decoder = decoders.Sequence(steps)
        # What transformers makes of an absent file has the special tokens alone.
        if not {START, END} < vocab.keys():
            raise UserError(
                f"the vocabulary in {directory} is not CLIP's: {len(vocab)} tokens, "
                f"start {vocab.get(START)}, end {vocab.get(END)}; expected byte pairs "
                f"with {START} and {END}"
            )
        return cls(tokenizer, context, OPEN_CLIP)

    @classmethod
    def load(
        cls, source: str, context: int, *, local_files_only: bool = False
    ) -> "Vocabulary":
        """Loads a vocabulary.json, a directory with one or with CLIP's tokenizer files,
        or a hub id.

        Args:
            local_files_only: looks for a hub id in the hub's cache only.

        Raises:
            UserError: where there is none, or it is no vocabulary.
        """
        path = to_place(source)
        if path.is_file():
            return cls.read(path, context)
        if not path.is_dir():
            path = hub.find_directory(
                source, files=CLIP_FILES, local_files_only=local_files_only
            )
        if (path / VOCABULARY).is_file():
            return cls.read(path / VOCABULARY, context)
        return cls.read_clip(path, context)

    def check(self, vocab_size: int, source: str | Place) -> None:
        """Checks that the vocabulary is that of a text tower.

        Args:
            vocab_size: rows of the tower's embedding.
            source: where the vocabulary comes from, for messages.

        Raises:
            UserError: where the tower has no rows for its tokens, or CLIP's tower
                another vocabulary.
        """
        count = len(self)
        is_clip = self.start_id is not None and not self.has_words
        # A vocabulary of words may have fewer: the captions had no more.
        if count > vocab_size or (is_clip and count < vocab_size):
            start = f"start {self.start_id}" if is_clip else "no start"
            raise UserError(
                f"the vocabulary of {source} has {count} tokens ({start}, end "
                f"{self.end_id}), the text tower has {vocab_size} (clip.vocab_size): "
                "they do not belong together"
            )
        if is_clip and count == CLIP_TOKENS and self.sha256() != CLIP_SHA256:
            raise UserError(
                f"the vocabulary of {source} is not OpenAI's, although it has as many "
                f"tokens ({count}); expected that of openai/clip-vit-large-patch14-336"
            )

    def sha256(self) -> str:
        """Returns a digest of the tokens, their ids and the pairs that make them."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        # Once: CLIP's tokens are a megabyte of JSON.
        model = json.loads(self.tokenizer.to_str())["model"]
        pairs = [" ".join(_parts(pair)) for pair in model.get("merges", ())]
        return json_sha256([model["vocab"], pairs])

    def save(self, directory: Place) -> None:
        """Writes vocabulary.json, whole or not at all."""
        content: dict[str, Any] = json.loads(self.tokenizer.to_str())
        if self.cleaning:
            content = {"cleaning": self.cleaning, "tokenizer": content}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        write_bytes(directory / VOCABULARY, text.encode())

    def __reduce__(self):
        return Vocabulary, (self.tokenizer, self.context, self.cleaning)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, captions: Sequence[str], *, warns: bool = True) -> np.ndarray:
        """Encodes captions to ids [b, context], int32.

        Args:
            warns: whether captions cut short and unknown words are logged, once.
        """
        ids = np.full((len(captions), self.context), PAD_ID, np.int32)
        cleaned = captions
        if self.cleaning:
            cleaned = [clean_caption(caption) for caption in captions]
        tokenizer = self.tokenizer
        warns = warns and self._warnings is not None
        # The fast method finds no offsets, which only the warnings need.
        encode = tokenizer.encode_batch if warns else tokenizer.encode_batch_fast
        encodings = encode(cleaned, add_special_tokens=False)
        start = [] if self.start_id is None else [self.start_id]
        room = self._room
        if warns:
            self._warnings.say(cleaned, encodings, room, self.unknown_id)
        for row, encoding in zip(ids, encodings, strict=True):
            tokens = [*start, *encoding.ids[:room], self.end_id]
            row[: len(tokens)] = tokens
        return ids

    def count(self, captions: Sequence[str]) -> CaptionCounts:
        """Counts what is unknown and what is cut when captions are encoded."""
        cleaned = captions
        if self.cleaning:
            cleaned = [clean_caption(caption) for caption in captions]
        encodings = self.tokenizer.encode_batch(cleaned, add_special_tokens=False)
        unknown: collections.Counter[str] = collections.Counter()
        words = set()
        for caption, encoding in zip(cleaned, encodings, strict=True):
            if not self.has_words:
                continue
            texts = [caption[a:b] for a, b in encoding.offsets]
            words.update(texts)
            pairs = zip(encoding.ids, texts, strict=True)
            unknown.update(text for i, text in pairs if i == self.unknown_id)
        lengths = [len(encoding.ids) for encoding in encodings]
        cut = sum(length > self._room for length in lengths)
        return CaptionCounts(len(captions), sum(lengths), unknown, cut, len(words))

    @property
    def has_words(self) -> bool:
        """True where tokens are words, and not byte pairs, which spell every word."""
        return self.unknown_id is not None

    @property
    def _room(self) -> int:
        """Number of a caption's own tokens that fit, beside start and end."""
        return self.context - 1 - (self.start_id is not None)

    @property
    def silent_ids(self) -> set[int]:
        """Ids that stand for no text: the start token, and padding."""
        start = set() if self.start_id is None else {self.start_id}
        # Id 0 is padding in a trained vocabulary, and the token "!" in CLIP's.
        return start if start and not self.has_words else {*start, PAD_ID}

    def decode(self, ids: np.ndarray) -> list[str]:
        """Decodes ids [b, n], each row up to its first end token."""
        silent = self.silent_ids
        texts = []
        for row in np.asarray(ids).tolist():
            row = row[: row.index(self.end_id)] if self.end_id in row else row
            row = [i for i in row if i not in silent]
            text = self.tokenizer.decode(row, skip_special_tokens=False).strip()
            texts.append(join_punctuation(text) if self.has_words else text)
        return texts


def _read_json(file: Place) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise _damaged(file, error) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error
    if not isinstance(content, dict):
        raise _damaged(
            file, TypeError(f"{type(content).__name__} instead of an object")
        )
    return content


def _damaged(file: Place, error: Exception) -> UserError:
    reason = textwrap.shorten(str(error), SHOWN)
    return UserError(f"{file} is no vocabulary, or damaged: {reason}")


def _read_pairs(
    directory: Place,
) -> tuple[Mapping[str, int], list[tuple[str, str]], Place]:
    """Reads the tokens, the pairs in their order, and the file that has both.

    Raises:
        UserError: where no file has them.
    """
    vocab, merges, whole = (directory / name for name in CLIP_FILES)
    if vocab.is_file() and merges.is_file():
        model = {"vocab": _read_json(vocab), "merges": _read_lines(merges)}
        file = vocab
    elif whole.is_file():
        model = _read_json(whole).get("model")
        file = whole
    else:
        raise UserError(
            f"{directory} has no vocabulary; expected vocab.json and merges.txt, or "
            f"tokenizer.json, or {VOCABULARY}"
        )
    try:
        tokens = dict(model["vocab"])
        pairs = [_parts(pair) for pair in model["merges"]]
        return tokens, [(left, right) for left, right in pairs], file
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, ValueError("no byte pairs as CLIP's")) from error


def _parts(pair: str | Sequence[str]) -> Sequence[str]:
    """Returns both parts of a pair, which versions of tokenizers write in two ways."""
    return pair.split(" ") if isinstance(pair, str) else pair


def _read_lines(merges: Place) -> list[str]:
    try:
        # No splitlines: pairs of bytes hold characters that it takes for line ends.
        lines = merges.read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise _damaged(merges, error) from error
    return [line for line in lines if line and not line.startswith("#version")]
