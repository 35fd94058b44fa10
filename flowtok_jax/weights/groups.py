"""Groups of parameters, found among the places that may have them."""

from collections.abc import Iterable, Sequence
from itertools import chain

from ml_collections import ConfigDict

from flowtok_jax.models.build import find_providers
from flowtok_jax.models.lora import ADAPTED
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.lora import Lora, lora_file, read_lora
from flowtok_jax.weights.place import PRETRAINED, Weights, open_starts
from flowtok_jax.weights.pretrained import DERIVED
from flowtok_jax.weights.safetensors import file_of


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
    """Returns the places where groups are, or should be: weights, and what they started
    from; and the groups to read there, `both` for its parts.

    Args:
        config: of the run, or of the directory; another one may name no start, and then
            the run's own is taken.

    Raises:
        UserError: where a pretrained directory, which has no start, lacks some.
    """
    if needed.issubset(weights.groups):
        return [weights], sorted(needed)
    missing = sorted(group for group in needed if not weights.holds(group))
    if missing and weights.kind == PRETRAINED:
        raise UserError(
            f"{weights.place} has {', '.join(weights.groups)} only, and not "
            f"{', '.join(missing)}; convert them all into one directory"
        )
    init_from = config.get("init_from") or weights.init_from
    return first_places(needed, chain([weights], open_starts(init_from)))


def first_places(
    needed: Iterable[str], places: Iterable[Weights]
) -> tuple[list[Weights], list[str]]:
    """Returns as many places, from the first, as have all of some groups together, all
    of them where some group is nowhere; and the groups to read there, as `places_of`.
    """
    needed = set(needed)
    found = []
    missing = needed
    for place in places:
        found.append(place)
        missing = {group for group in missing if not place.holds(group)}
        if not missing:  # before another one is opened
            break
    return found, find_providers(needed, *[place.groups for place in found])


def find_adapters(places: Sequence[Weights]) -> dict[str, Lora]:
    """Reads the adapters that groups of these places are made by, of each group those
    of the first place that has it.
    """
    found = {}
    for place in places:
        for group in place.groups:
            if group not in found:
                found[group] = _adapters_of(place, group)
    return {group: lora for group, lora in found.items() if lora is not None}


def _adapters_of(weights: Weights, group: str) -> Lora | None:
    if weights.kind == PRETRAINED:
        has_adapters = group in weights.config.get(DERIVED, {})
        return read_lora(weights.place / file_of(group)) if has_adapters else None
    if group + ADAPTED not in weights.steps:
        return None
    path = lora_file(weights.place, group)
    return read_lora(path) if path.is_file() else None
