"""Groups of parameters, found among the places that may have them."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from flowtok_jax.models.build import find_providers
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


def places_of(
    weights: Weights, needed: set[str], config: ConfigDict
) -> tuple[list[Weights], list[str]]:
    """Returns the places where groups are, or should be: weights, and their start; and
    the groups to read there, `both` for its parts.

    Args:
        config: of the run, or of the directory.

    Raises:
        UserError: where a pretrained directory, which has no start, lacks some.
    """
    if needed.issubset(weights.groups):
        return [weights], sorted(needed)
    found = find_providers(needed, weights.groups)
    missing = [group for group in found if group not in weights.groups]
    if missing and weights.kind == PRETRAINED:
        raise UserError(
            f"{weights.place} has {', '.join(weights.groups)} only, and not "
            f"{', '.join(missing)}; convert them all into one directory"
        )
    # A run trains some groups, and has the others where it started from.
    start = open_start(config.init_from) if missing else None
    if start is None:
        return [weights], found
    return [weights, start], find_providers(needed, weights.groups, start.groups)
