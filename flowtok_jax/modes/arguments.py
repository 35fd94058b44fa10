"""Meaning of a command line: its config, its trained weights, its folder."""

import dataclasses
import functools
import logging
import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from flowtok_jax.flow.samplers import check_scale
from flowtok_jax.runtime import config as config_files
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, absolute, to_place
from flowtok_jax.weights.lora import parse_loras
from flowtok_jax.weights.place import Weights, open_weights
from flowtok_jax.weights.sizes import adopt

RUNS = "runs"
A_CHECKPOINT = "a run's workdir or a directory of pretrained weights"


@dataclasses.dataclass
class Arguments:
    """A parsed command line.

    Attributes:
        flags: absl's values by name.
        named: the value of --config as it was given, with its variant; "" for none.
        changes: flags --config.KEY=VALUE, where no --config names a config: they change
            the one stored with the weights.
    """

    flags: Any
    named: str
    changes: list[str]

    @property
    def overrides(self) -> dict[str, Any]:
        """The keys of --config that flags --config.KEY=VALUE change."""
        return config_flags.get_override_values(self.flags["config"])

    def default_workdir(self) -> str:
        """Returns runs/NAME, the workdir of a config where --workdir gives none.

        A variant that is one of the config's stages, as in configs/demo.py:t2i, shares
        the workdir of the others; any other has its own, as configs/h.py:2 in runs/h-2.
        """
        path, _, variant = self.named.partition(":")
        name = pathlib.Path(path).stem
        if variant and variant not in self.flags.config.stages:
            name += f"-{variant}"
        return f"{RUNS}/{name}"

    def workdir(self) -> Place:
        """Returns the folder of a run, and says so where --workdir does not name it."""
        if self.flags.workdir:
            return to_place(self.flags.workdir)
        workdir = self.default_workdir()
        logging.info("workdir: %s (--workdir=DIR for another)", workdir)
        return to_place(workdir)

    @functools.cached_property
    def weights(self) -> Weights:
        """The weights to use: of --checkpoint, else of the workdir; with --lora on top.

        Raises:
            UserError: where none is named, or the place does not exist.
        """
        weights = self._open_weights()
        if not self.flags.lora:
            return weights
        return weights.with_loras(parse_loras(self.flags.lora))

    def _open_weights(self) -> Weights:
        # Only --checkpoint may name a hub id or shipped weights: nobody means runs/demo
        # on the hub.
        if self.flags.checkpoint:
            return open_weights(self.flags.checkpoint)
        if not (self.flags.workdir or self.named):
            raise UserError(
                f"no weights named; expected --checkpoint=DIR, {A_CHECKPOINT}"
            )
        place = to_place(self.flags.workdir or self.default_workdir())
        if not place.is_dir():
            raise UserError(
                f"checkpoint {place} does not exist; expected {A_CHECKPOINT}"
            )
        return Weights(place)

    def output(self) -> Place:
        """Returns the folder to write to: --workdir, else that of the weights, for
        shipped ones one of their own in runs/.

        Raises:
            UserError: where the weights lie in the hub's cache.
        """
        if self.flags.workdir:
            return to_place(self.flags.workdir)
        if self.weights.is_download:
            raise UserError("no folder to write to named; expected --workdir=DIR")
        if self.weights.is_shipped:
            return to_place(f"{RUNS}/{self.weights.place.name}-shipped")
        return self.weights.place

    def config(self) -> ConfigDict:
        """Returns the config that --config names, with what the weights say of it.

        Raises:
            UserError: where there is none.
        """
        config = self.flags.config
        if config is None:
            raise UserError("no config named; expected --config=configs/demo.py, say")
        self._prepare(config)
        return config

    def training_config(self) -> ConfigDict:
        """Returns `config()` with --checkpoint as `init_from`.

        Raises:
            UserError: where the two name different places.
        """
        if self.flags.lora:
            raise UserError(
                f"--lora={self.flags.lora[0]} is not for training; expected weights "
                "with the adapters in them as --checkpoint: the run's own workdir, or "
                "what save_pretrained wrote"
            )
        config = self.config()
        start = self.flags.checkpoint
        both = (start, config.init_from)
        if all(both) and len({absolute(to_place(place)) for place in both}) > 1:
            raise UserError(
                f"--checkpoint={start} and init_from={config.init_from} differ; "
                "training starts from one place: give one of them"
            )
        config.init_from = start or config.init_from
        if self.flags.minutes is not None:
            if not config.own.size:
                raise UserError(
                    "--minutes chooses steps for --config=configs/own.py alone; "
                    "expected --config.train.num_steps=N"
                )
            config.own.minutes = self.flags.minutes
        return config

    def weights_config(self) -> ConfigDict | None:
        """Returns the config to use trained weights with; None for the stored one.

        Raises:
            UserError: where a change of the stored config cannot be.
        """
        config = self.flags.config
        if self.changes:
            config = self._changed_config()
        elif config is not None:
            self._prepare(config, has_weights=True)
        if config is not None and self.weights.has_config:
            self._check_guidance(config)
        return config

    def _check_guidance(self, config: ConfigDict) -> None:
        takes_scale = config.get("student", {}).get("takes_scale", False)
        stored = self.weights.config
        for section in ("sample", "caption"):
            chosen, own = (c[section] for c in (config, stored))
            check_scale(chosen.solver, chosen.scale, own.scale, takes_scale)

    def shown_config(self) -> ConfigDict:
        """Returns the config that the command would use, for --print_config."""
        if self.flags.mode == "train":
            return self.training_config()
        config = self.weights_config()
        return self.weights.config if config is None else config

    def _prepare(self, config: ConfigDict, has_weights: bool = False) -> None:
        """Makes the command line win over stages' own values, and adopts weights'.

        Args:
            has_weights: whether the workdir is a place of weights too.
        """
        config_files.drop_overridden(config, self.overrides)
        config_files.check_values(config)
        if config.init_vocabulary and "clip.vocab_size" in self.overrides:
            raise UserError(
                "clip.vocab_size is given, and init_vocabulary, which decides it; "
                "expected one of them"
            )
        if not config.init_config:
            return
        starts_elsewhere = config.init_from and not self.flags.checkpoint
        if starts_elsewhere:
            weights = open_weights(config.init_from)
        elif self.flags.checkpoint or has_weights:
            weights = self.weights
        else:
            raise UserError(
                "this config starts from trained weights and takes their sizes; "
                "expected --checkpoint=DIR, a run's workdir (runs/demo) or a directory "
                "of pretrained weights (weights/xl)"
            )
        adopt(config, weights, self.overrides, trains=not has_weights)

    def _changed_config(self) -> ConfigDict:
        """Returns the stored config, changed by flags --config.KEY=VALUE."""
        if not (self.flags.checkpoint or self.flags.workdir):
            raise UserError(
                f"{self.changes[0].partition('=')[0]} changes no config; expected "
                "--config=FILE, or --checkpoint=DIR beside it"
            )
        config = self.weights.config
        argv = ["main", *config_files.check_changes(config, self.changes)]
        values = flags.FlagValues()
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv
        )
        try:
            values(argv)
        except (flags.Error, ValueError, TypeError) as error:
            raise config_files.flag_error(error) from error
        config_files.check_values(config)
        return config
