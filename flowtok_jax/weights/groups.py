"""Groups of parameters, found among the places that may have them."""

import functools
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.models.build import Nets
from flowtok_jax.runtime.errors import UserError, raise_together
from flowtok_jax.weights.place import PRETRAINED, Weights, open_start

# Groups that the release or the hub has, and the flag that converts them.
CONVERTED = {
    "clip": "--clip=openai/clip-vit-large-patch14-336",
    "tokenizer": "--tokenizer=FlowTiTok_512.bin",
}


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


def load_groups(
    wanted: Mapping[str, Mapping[str, Params]], nets: Nets, places: Sequence[Weights]
) -> dict[str, Params]:
    """Reads groups of parameters, each from the first of the places that has it.

    Args:
        wanted: shapes of the parameters, by group and network.

    Raises:
        UserError: where no place has a group, saying what to do.
    """
    found = {group: find_place(group, places) for group in wanted}
    # All that differs is said at once, and before the first is read.
    checks = {
        group: functools.partial(place.check, group, wanted[group], nets)
        for group, place in found.items()
    }
    raise_together(checks, "the weights do not fit this config")
    return {
        group: place.read(group, wanted[group], nets) for group, place in found.items()
    }


def find_place(group: str, places: Sequence[Weights]) -> Weights:
    """Returns the first of the places that has a group.

    Raises:
        UserError: where none has, with the command that gets the group.
    """
    for place in places:
        if group in place.groups:
            return place
    where = " nor in ".join(str(p.place) for p in places)
    missing = f"no weights of {group}" + (f" in {where}" if places else "")
    if group in CONVERTED:
        cure = (
            f"set --config.init_from=DIR to a directory that has them, made by `python "
            f"-m flowtok_jax.convert {CONVERTED[group]} --out=DIR`"
        )
        if group == "clip":
            cure += ", or --config.text.weights=random for a tower never trained"
        else:
            cure += (
                " (512 px), or to the workdir of a run that trained it, as by "
                "configs/tokenizer.py"
            )
    else:
        cure = (
            f"train stage {group} first, or set --config.init_from=WORKDIR to where it "
            "was trained"
        )
    raise UserError(f"{missing}; {cure}")
