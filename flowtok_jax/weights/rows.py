"""Weights under another vocabulary: tokens of both keep their rows.

The text tower has a row of its embedding for each token, the text tokenizer's decoder a
column of its last kernel and a value of that bias. Moved to a new vocabulary, the rows
of a token are, as `match_tokens` finds them,

    those of the same token, bit for bit                                          (1)
    the mean of those of its parts, where byte pairs spelled the word             (2)
    fresh ones, as at the start of training                                       (3)
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.data.vocabulary import PAD_ID, Vocabulary
from flowtok_jax.models.build import Nets
from flowtok_jax.runtime.files import Place
from flowtok_jax.weights import workdir
from flowtok_jax.weights.place import Weights, find_holder

WORD_END = "</w>"  # of byte pairs that end a word

# group -> its parameters with a row for each token -> the axis of these rows
ROWS = {
    "clip": {"clip/embed/embedding": 0},
    "t2i": {"clip/embed/embedding": 0},  # of its own tower, if it has one
    "text_tokenizer": {"text_decoder/out/kernel": 1, "text_decoder/out/bias": 0},
}
ROWS["both"] = ROWS["t2i"] | ROWS["text_tokenizer"]

# For each id of a new vocabulary the ids of the old one whose rows it gets the mean of.
Match = Sequence[tuple[int, ...]]


def _rows_in(group: str, paths: Collection[str]) -> dict[str, int]:
    """Returns the entry of ROWS, without the paths that a group does not have."""
    return {path: axis for path, axis in ROWS[group].items() if path in paths}


def match_tokens(old: Vocabulary, new: Vocabulary) -> Match:
    """Finds each token of a vocabulary in another one.

    Special tokens are matched by their meaning, whatever they are called.
    """
    special = {
        PAD_ID: PAD_ID,
        new.end_id: old.end_id,
        new.start_id: old.start_id,
        new.unknown_id: old.unknown_id,
    }
    found: list[tuple[int, ...]] = [()] * len(new)
    for token, new_id in new.tokenizer.get_vocab().items():
        if new_id not in special:
            found[new_id] = _find_token(old, new, token)
        elif special[new_id] is not None:
            found[new_id] = (special[new_id],)
    return found


def _find_token(old: Vocabulary, new: Vocabulary, token: str) -> tuple[int, ...]:
    """Returns the ids of a token, or of the word that it is, in another vocabulary."""
    if old.has_words == new.has_words:
        same = old.tokenizer.token_to_id(token)
        return () if same is None else (same,)
    # Byte pairs inside a word are no word, though one may be spelled so.
    if not (new.has_words or token.endswith(WORD_END)):
        return ()
    ids = [new.tokenizer.token_to_id(token)]
    word = new.tokenizer.decode(ids, skip_special_tokens=False).strip()
    parts = old.tokenizer.encode(word, add_special_tokens=False).ids
    return () if old.unknown_id in parts else tuple(parts)


def describe_match(old: Vocabulary, match: Match) -> str:
    """Says in a few words how many rows stay and how many are new."""
    kept = {ids[0] for ids in match if len(ids) == 1}
    means = sum(len(ids) > 1 for ids in match)
    new = sum(not ids for ids in match)
    spelled = f" {means:,} as the mean of their parts' rows," if means else ""
    return f"kept {len(kept):,} of {len(old):,} rows,{spelled} {new:,} new"


def move_rows(group: str, old: Params, fresh: Params, match: Match) -> Params:
    """Returns a group's parameters under a new vocabulary, (1) to (3).

    Args:
        old: the parameters under the old vocabulary.
        fresh: parameters in the new shapes, whose rows are taken for new tokens.
    """
    moved = flatten_dict(old, sep="/")
    drawn = flatten_dict(fresh, sep="/")
    for path, axis in _rows_in(group, moved).items():
        source = np.moveaxis(np.asarray(moved[path]), axis, 0)
        rows = np.moveaxis(np.array(drawn[path]), axis, 0)
        for new_id, ids in enumerate(match):
            if len(ids) == 1:  # no mean of one: it must not round
                rows[new_id] = source[ids[0]]
            elif ids:
                rows[new_id] = source[list(ids)].mean(0)
        moved[path] = np.ascontiguousarray(np.moveaxis(rows, 0, axis))
    return unflatten_dict(moved, sep="/")


def read_moved(
    weights: Weights,
    group: str,
    wanted: Mapping[str, Params],
    nets: Nets,
    vocabulary: Vocabulary,
    init: Callable[[], Params],
) -> Params:
    """Reads a group's parameters under another vocabulary than the weights' own.

    Args:
        wanted: shapes of the parameters under the new vocabulary, by network.
        nets: what the parameters are for.
        init: draws the group's parameters, for the rows of new tokens.

    Raises:
        UserError: where weights or their vocabulary do not exist, or do not fit.
    """
    match = match_tokens(weights.vocabulary(vocabulary.context), vocabulary)
    stored = flatten_dict(wanted, sep="/")
    for path, axis in _rows_in(group, stored).items():
        shape = list(stored[path].shape)
        shape[axis] = weights.config.clip.vocab_size
        stored[path] = jax.ShapeDtypeStruct(tuple(shape), stored[path].dtype)
    there = weights.read(
        group, unflatten_dict(stored, sep="/"), nets, is_start=group != "clip"
    )
    return move_rows(group, there, init(), match)


def store_moved_clip(
    folder: Place,
    starts: Iterable[Weights],
    nets: Nets,
    vocabulary: Vocabulary,
    init: Callable[[], Params],
) -> None:
    """Stores the text tower of weights in a run's folder, under the run's vocabulary.

    Nothing is stored where the folder has a tower already, or the weights have none.

    Args:
        starts: the weights, and what they started from.
        nets: the run's networks.
        init: draws the tower, for the rows of new tokens.
    """
    if workdir.steps_of(folder, "clip"):
        return
    weights = find_holder("clip", starts)
    if weights is not None:
        wanted = jax.eval_shape(init)
        moved = read_moved(weights, "clip", wanted, nets, vocabulary, init)
        workdir.store_group(folder, "clip", moved)
