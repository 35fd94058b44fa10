"""Trained weights at one place: the workdir of a run, or a pretrained directory.

`open_weights` lists the place once and decides what it is; the `Weights` object is then
passed on. On gs:// every question asked again would be another request.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.data.vocabulary import VOCABULARY, Vocabulary
from flowtok_jax.models.build import (
    BOTH,
    Nets,
    abstract_both,
    has_group,
    make_nets,
    take_group,
)
from flowtok_jax.models.lora import (
    ADAPTED,
    LoraOptions,
    abstract_adapters,
    merge_on_host,
)
from flowtok_jax.runtime import hub
from flowtok_jax.runtime.errors import UserError, raise_together
from flowtok_jax.runtime.files import Place, absolute, reaching, to_place
from flowtok_jax.runtime.paths import find_shipped
from flowtok_jax.weights import pretrained, workdir
from flowtok_jax.weights.cures import cure_of
from flowtok_jax.weights.lora import Loras, merge_loras, open_loras
from flowtok_jax.weights.workdir import CHECKPOINTS, CONFIG

FILES = (CONFIG, VOCABULARY, "*.safetensors")  # of a repository of the hub

RUN = "run"
PRETRAINED = "pretrained"

# What no shape tells, by network: the same arrays compute another function under
# another value of these keys.
UNSEEN = {
    "clip": ("clip.heads",),
    "tokenizer": (
        "tokenizer.encoder.heads",
        "tokenizer.decoder.heads",
        "tokenizer.image_size",
    ),
    "projector": ("projector.heads",),
    "text_decoder": ("text_decoder.heads",),
    "dit": ("dit.heads", "tokenizer.latent_scale"),
    "student": ("dit.heads", "student.early", "tokenizer.latent_scale"),
    "shared_dit": ("dit.heads", "tokenizer.latent_scale"),
}


class Weights:
    """The trained weights of a place, by group of networks.

    Attributes:
        place: the directory.
        name: the place as a user names it, and adapters.
        kind: RUN or PRETRAINED.
        is_download: whether the place is the hub's cache, not where the user pointed.
        is_shipped: whether the place is a part of the package.
        has_vocabulary: whether a vocabulary lies beside the weights.
        has_config: whether a config does.
        loras: adapters on top of the groups.
    """

    def __init__(
        self, place: Place, *, is_download: bool = False, is_shipped: bool = False
    ):
        self.place = place
        self.name = place.name if is_shipped else str(place)
        self.is_download = is_download
        self.is_shipped = is_shipped
        # One listing answers what three questions to a store would.
        with reaching(place):
            names = {path.name for path in place.iterdir()}
        has_arrays = any(name.endswith(".safetensors") for name in names)
        self.kind = PRETRAINED if has_arrays else RUN
        self.has_vocabulary = VOCABULARY in names
        self.has_config = CONFIG in names
        self.loras = ()

    @functools.cached_property
    def _stored(self) -> ConfigDict:
        # Not at once: a folder of checkpoints without a config loads as well.
        if self.kind == PRETRAINED:
            return pretrained.read_stored_config(self.place)
        return workdir.read_config(self.place)

    @property
    def config(self) -> ConfigDict:
        """A copy of the config that is stored with the weights.

        Raises:
            UserError: where none is, or it cannot be read.
        """
        return self._stored.copy_and_resolve_references()

    @property
    def init_from(self) -> str:
        """The weights that a run started from, as its config names them, or ""."""
        is_known = self.kind == RUN and self.has_config
        return self._stored.get("init_from", "") if is_known else ""

    @functools.cached_property
    def steps(self) -> dict[str, int]:
        """Newest finished step of each group of a run; empty for other weights."""
        return workdir.newest_steps(self.place) if self.kind == RUN else {}

    @functools.cached_property
    def _checkpoints(self) -> Place:
        # Orbax takes absolute paths only.
        return absolute(self.place) / CHECKPOINTS

    @functools.cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups whose parameters the place holds, or adapters make."""
        return self._held  # `with_loras` puts a longer one in its place

    @functools.cached_property
    def _held(self) -> tuple[str, ...]:
        if self.kind == PRETRAINED:
            return tuple(self._stored.groups)
        return tuple(dict.fromkeys(name.removesuffix(ADAPTED) for name in self.steps))

    def holds(self, group: str) -> bool:
        """Tells whether the place has a group, be it as a part of `both`."""
        return group in self.groups or has_group(group, self.groups)

    def with_loras(self, loras: Loras) -> "Weights":
        """Returns these weights with adapters on top.

        Raises:
            UserError: where there are none, or they adapt a group that is not here.
        """
        found = copy.copy(self)
        added = open_loras(loras)
        found.loras = (*self.loras, *added)
        made = (lora.group for lora in added)
        found.groups = tuple(dict.fromkeys((*self.groups, *made)))
        found.name = " + ".join((self.name, *(str(lora.path) for lora in added)))
        for lora in found.loras:
            if not has_group(lora.group, self._held):
                raise UserError(
                    f"{lora.path} adapts {lora.group}; {self.place} has "
                    f"{', '.join(self._held)} only"
                )
        return found

    def make_nets(self) -> Nets:
        """Builds the networks of the stored config.

        Raises:
            UserError: where the config is that of another version.
        """
        with of_this_version(self):
            return make_nets(self._stored)

    def vocabulary(self, context: int) -> Vocabulary:
        """Reads the vocabulary, for captions of `context` ids.

        Raises:
            UserError: where there is none, or another one than the weights'.
        """
        path = self.place / VOCABULARY
        if not self.has_vocabulary:
            raise UserError(f"{path} does not exist; FlowTok needs it to read captions")
        stored = self._stored if self.has_config else {}
        return workdir.read_vocabulary(path, context, stored)

    def read(
        self,
        group: str,
        wanted: Mapping[str, Params],
        nets: Nets,
        *,
        is_start: bool = False,
    ) -> Params:
        """Reads a group's parameters, of a run the newest averaged ones, into memory.

        Args:
            wanted: shapes of the parameters, by the group's networks.
            nets: what the parameters are for.
            is_start: whether training goes on from the parameters, so that they may be
                for another image size or latent scale.

        Raises:
            UserError: where there are none, or they do not fit the networks.
        """
        is_held = group in self._held
        if not (is_held or has_group(group, self._held)):
            raise UserError(f"no weights of {group} in {self.place}")
        self.check(group, wanted, nets, is_start=is_start)
        if not is_held:  # a part of `both`, which adapters are over
            both = self.read(BOTH, abstract_both(nets), nets, is_start=is_start)
            part = take_group({BOTH: both}, group)
            found = {name: part[name] for name in wanted}
        elif self.kind == PRETRAINED:
            found = pretrained.read_group(self.place, group, wanted, self._stored)
        elif group + ADAPTED in self.steps:
            found = self._read_adapted(group, wanted, nets)
        else:
            found = self._read_step(group, wanted)
        loras = [lora for lora in self.loras if lora.group == group]
        return merge_loras(found, loras) if loras else found

    def _read_step(self, name: str, wanted: Mapping[str, Params]) -> Params:
        path = self._checkpoints / name / str(self.steps[name]) / "ema"
        return workdir.read_parameters(path, wanted)

    def read_adapters(self, group: str, wanted: Mapping[str, Params]) -> Params:
        """Reads the newest averaged adapters that a run trained over a group."""
        adapters = abstract_adapters(wanted, LoraOptions(**self._stored.lora))
        return self._read_step(group + ADAPTED, adapters)

    def _read_adapted(
        self, group: str, wanted: Mapping[str, Params], nets: Nets
    ) -> Params:
        """Reads what a run's adapters make of the group that they are over."""
        if group in self.steps:  # a student that began as a copy of its teacher
            base = self._read_step(group, wanted)
        else:
            place = find_place(group, open_starts(self.init_from))
            base = place.read(group, wanted, nets, is_start=True)
        scale = LoraOptions(**self._stored.lora).scale
        return merge_on_host(base, self.read_adapters(group, wanted), scale)

    def check(
        self,
        group: str,
        wanted: Mapping[str, Any],
        nets: Nets,
        *,
        is_start: bool = False,
    ) -> None:
        """Refuses a group that was made for other networks, as its config tells.

        Raises:
            UserError: naming all the keys that differ.
        """
        if not self.has_config:
            return
        differing = {}
        for key in (key for name in wanted for key in UNSEEN.get(name, ())):
            # Training adapts to another image size or scale, but not to other heads.
            if is_start and not key.endswith(".heads"):
                continue
            there = find_value(self._stored, key)
            here = find_value(nets, key)
            # Configs of versions that lacked the key say nothing.
            if there not in (None, here):
                differing[key] = (there, here)
        if differing:
            made = ", ".join(f"{k} = {there}" for k, (there, _) in differing.items())
            here = ", ".join(str(here) for _, here in differing.values())
            cure = " ".join(f"--config.{k}={v}" for k, (v, _) in differing.items())
            raise UserError(
                f"{group} in {self.place} was made with {made}, this config has "
                f"{here}; set {cure}, or start from other weights"
            )


def find_value(tree: Any, key: str) -> Any:
    """Returns a value of a config or of networks by its dotted key; None for none."""
    for name in key.split("."):
        is_mapping = isinstance(tree, Mapping | ConfigDict)
        tree = tree.get(name) if is_mapping else getattr(tree, name)
        if tree is None:
            break
    return tree


@contextlib.contextmanager
def of_this_version(weights: Weights) -> Iterator[None]:
    """Turns what a config of other networks raises into a UserError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{weights.place / CONFIG} is not that of this version's networks: {error}"
        ) from error


def open_weights(source: str | Place, *, local_files_only: bool = False) -> Weights:
    """Opens trained weights.

    Args:
        source: the workdir of a run, a directory that `save_pretrained` or `python -m
            flowtok_jax.convert` wrote, the name of weights that ship with the package,
            or a hub id OWNER/NAME of such a directory.
        local_files_only: looks for a hub id in the hub's cache only.

    Raises:
        UserError: where the source does not exist, or may mean two things.
    """
    if (shipped := find_shipped(str(source))) is not None:
        return Weights(shipped, is_shipped=True)
    place = to_place(source)
    if place.is_dir():
        return Weights(place)
    downloaded = hub.find_directory(
        source, files=FILES, local_files_only=local_files_only
    )
    return Weights(downloaded, is_download=True)


def open_start(init_from: str) -> Weights | None:
    """Opens the weights that `config.init_from` names, if it names any.

    Raises:
        UserError: where they do not exist.
    """
    if not init_from:
        return None
    try:
        return open_weights(init_from)
    except UserError as error:
        raise UserError(f"init_from = {error}") from error


def open_starts(
    init_from: str,
    opener: Callable[[str], Weights | None] = open_start,
    *,
    ends_at_missing: bool = False,
) -> Iterator[Weights]:
    """Opens the weights that `config.init_from` names, those that their training
    started from, and so on.

    A run holds what it trained; what it only used is where it started, or where that
    started. Each place is opened when it is asked for: nobody may need the last ones.

    Args:
        opener: in place of `open_start`, to open each place once.
        ends_at_missing: whether a place that is missing is the end, unless the first.
    """
    seen = set()
    while init_from and init_from not in seen:
        try:
            weights = opener(init_from)
        except UserError:
            if not (seen and ends_at_missing):
                raise
            return
        seen.add(init_from)
        yield weights
        init_from = weights.init_from


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


def find_holder(group: str, places: Iterable[Weights]) -> Weights | None:
    """Returns the first of the places that has a group; None where none has."""
    return next((place for place in places if place.holds(group)), None)


def find_place(group: str, places: Iterable[Weights]) -> Weights:
    """Returns the first of the places that has a group, as `find_holder` does.

    Raises:
        UserError: where none has, with the command that gets the group.
    """
    searched = []
    for place in places:
        if place.holds(group):
            return place
        searched.append(str(place.place))
    where = f" in {' nor in '.join(searched)}" if searched else ""
    raise UserError(f"no weights of {group}{where}; {cure_of(group)}")
