"""Groups of parameters, found among the places that may have them."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.place import PRETRAINED, Weights, open_start


def known_groups(weights: Weights, known: Sequence[str]) -> set[str]:
    """Returns the groups of weights that this version knows.

    Raises:
        UserError: where there is none, or a pretrained directory has others too.
    """
    if not weights.groups:
        raise UserError(
            f"no checkpoint in {weights.place}; train one there first, or give the "
            "workdir of a run"
        )
    unknown = [group for group in weights.groups if group not in known]
    # A run may have more folders among its checkpoints, such as one moved away.
    if unknown and weights.kind == PRETRAINED:
        raise UserError(
            f"{weights.place} has weights of {', '.join(unknown)}; known are "
            f"{', '.join(known)}"
        )
    return set(weights.groups).difference(unknown)


def places_of(weights: Weights, needed: set[str], config: ConfigDict) -> list[Weights]:
    """Returns the places where groups are, or should be: weights, and their start.

    Args:
        config: of the run, or of the directory.

    Raises:
        UserError: where a pretrained directory, which has no start, lacks some.
    """
    missing = sorted(needed.difference(weights.groups))
    if missing and weights.kind == PRETRAINED:
        raise UserError(
            f"{weights.place} has {', '.join(weights.groups)} only, and not "
            f"{', '.join(missing)}; convert them all into one directory"
        )
    # A run trains some groups, and has the others where it started from.
    start = open_start(config.init_from) if missing else None
    return [weights] if start is None else [weights, start]
