"""Command that converts released weights for FlowTok.from_pretrained, and back.

    python -m flowtok_jax.convert --flowtok=FlowTok-XL.pth \\
        --tokenizer=FlowTiTok_512.bin --clip=openai/clip-vit-large-patch14-336 \\
        --out=weights/xl
    python -m flowtok_jax.convert --checkpoint=runs/xl --to_release=mine.pth

Weights of the networks that metrics judge with go to a directory of their own:

    python -m flowtok_jax.convert --inception=pt_inception-2015-12-05-6726825d.pth \\
        --lpips=vgg16-397923af.pth,vgg.pth --convnext=convnext_small-0c510722.pth \\
        --clip_score=openai/clip-vit-large-patch14-336 --out=weights/metrics

Exit status: 0, or 2 for a mistake of the user's, with one line that says what to do.
"""

import argparse
import functools
import logging
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from flowtok_jax.convert import critics, state_dicts
from flowtok_jax.convert.groups import convert, read_sizes, to_release
from flowtok_jax.convert.rules import RULES
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.models import dit, tokenizer
from flowtok_jax.models.build import make_nets
from flowtok_jax.perf.machine import process_peak_bytes
from flowtok_jax.pipeline import SampleOptions
from flowtok_jax.runtime import cli
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import check_new_directory, to_place
from flowtok_jax.runtime.paths import expand_path
from flowtok_jax.tasks import abstract_group
from flowtok_jax.weights import pretrained
from flowtok_jax.weights.place import open_weights

DTYPES = ("float32", "bfloat16")


class GroupSource(NamedTuple):
    """State dict of a group, its file, and the sizes that its shapes tell."""

    path: pathlib.Path
    state: Mapping[str, np.ndarray]
    heads: dict[str, int]  # network -> heads, which no shape tells
    sizes: dict[str, Any]


def make_convert_parser() -> argparse.ArgumentParser:
    """Makes the parser of the flags of both directions."""
    parser = cli.make_command_parser("flowtok_jax.convert", __doc__)
    add = parser.add_argument
    add("--flowtok", metavar="FILE", help="FlowTok-XL.pth, FlowTok-H.pth")
    add("--tokenizer", metavar="FILE", help="FlowTiTok_512.bin")
    add("--clip", metavar="DIR", help="directory or hub id of the CLIP it works with")
    add("--inception", metavar="FILE", help="pt_inception-2015-12-05-6726825d.pth")
    add("--lpips", metavar="FILES", help="VGG16's and LPIPS's, or one file of both")
    add("--convnext", metavar="FILE", help="torchvision's ConvNeXt-Small")
    add("--clip_score", metavar="DIR", help="directory or hub id of a whole CLIP")
    add("--out", metavar="DIR", help="directory to write; must not exist yet")
    add("--heads", default="", help="of unpublished sizes: dit=4,projector=4,clip=4")
    add("--dtype", default="float32", choices=DTYPES, help="to compute in later")
    add("--local_files_only", action="store_true", help="take CLIP from the cache")
    add("--checkpoint", metavar="DIR", help="a run's workdir, or what --out wrote")
    add("--to_release", metavar="FILE", help=".pth, .bin or .safetensors to write")
    add("--group", default="t2i", choices=RULES, help="what --to_release writes")
    return parser


def parse_heads(text: str) -> dict[str, int]:
    """Parses numbers of heads by network, as in `dit=4,clip=8`."""
    heads = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        if name not in ("dit", "projector", "clip") or not number.isdecimal():
            raise UserError(
                f"--heads={text}: {part!r} is not understood; expected NAME=NUMBER "
                "with dit, projector or clip for NAME"
            )
        heads[name] = int(number)
    return heads


def find_sources(
    paths: Mapping[str, str | None], heads: dict[str, int], local_files_only: bool
) -> dict[str, GroupSource]:
    """Opens the files of the groups and reads the sizes that their shapes tell."""
    sources = {}
    for group, given in paths.items():
        if not given:
            continue
        path = pathlib.Path(expand_path(given))
        known = dict(heads)
        if group == "clip":
            path = state_dicts.find_clip(given, local_files_only)
            state, told = state_dicts.read_clip(path)
            # What --heads says goes before CLIP's config.json.
            known = ({"clip": told["text"]} if "text" in told else {}) | heads
        else:
            state = state_dicts.read_state(path)
        shapes = {name: np.shape(array) for name, array in state.items()}
        with state_dicts.naming(path):
            sizes = read_sizes(group, shapes, known)
        logging.info("%s: %s: %s", group, path, _inline(sizes))
        sources[group] = GroupSource(path, state, known, sizes)
    return sources


def _inline(sizes: Mapping[str, Any]) -> str:
    """Formats nested sizes on one line."""
    flat = flatten_dict(dict(sizes), sep=".")
    return ", ".join(f"{key}={size}" for key, size in flat.items())


def merge_sizes(sources: Mapping[str, GroupSource], dtype: str) -> dict[str, Any]:
    """Makes the config of all sources together, with FlowTok-B's sizes as defaults.

    Raises:
        UserError: if two sources tell different sizes of the same thing.
    """
    sections = {
        "latent": {"tokens": 77, "channels": 16},
        "clip": {"width": 768, "vocab_size": 49408},
        "tokenizer": {
            "encoder": tokenizer.SIZES["base"],
            "decoder": tokenizer.SIZES["large"],
        },
        "projector": {},
        "align_head": {},
        "dit": dit.SIZES["b"],
        "text_decoder": {},
        "compute": {
            "dtype": dtype,
            "remat": "none",
            "attention": "xla",
            "layout": "batch",
        },
    }
    flat = flatten_dict(sections, keep_empty_nodes=True)
    told = {}  # key -> (size, file that told it)
    for source in sources.values():
        for key, size in flatten_dict(source.sizes).items():
            other, path = told.setdefault(key, (size, source.path))
            if other != size:
                raise UserError(
                    f"{'.'.join(key)} is {other} in {path} and {size} in "
                    f"{source.path}: they do not belong together"
                )
            flat.pop(key[:1], None)  # flatten_dict's mark of an empty section
            flat[key] = size
    return pretrained.make_stored_config(
        make_nets(ConfigDict(unflatten_dict(flat))),
        sample=SampleOptions()._asdict(),
        caption=SampleOptions(scale=1.0)._asdict(),
        text_scale=1.0,
    )


def convert_source(group: str, sources: dict[str, GroupSource]) -> dict[str, Any]:
    """Converts one group and removes its source from `sources`."""
    # Removed, so that its memory is free before the next group is converted.
    source = sources.pop(group)
    with state_dicts.naming(source.path):
        return convert(group, source.state, source.heads)


def _read_vocabulary(source: GroupSource) -> Vocabulary:
    """Reads the vocabulary beside CLIP's weights."""
    context, size = (source.sizes[k] for k in ("latent", "clip"))
    return state_dicts.read_clip_vocabulary(
        source.path, context["tokens"], size["vocab_size"]
    )


def from_release(flags: argparse.Namespace) -> None:
    """Converts the files named by the flags into the directory --out."""
    paths = {"t2i": flags.flowtok, "tokenizer": flags.tokenizer, "clip": flags.clip}
    if any(getattr(flags, name) for name in critics.METRIC_FLAGS):
        if any(paths.values()):
            raise UserError(
                "--inception, --lpips, --convnext and --clip_score go to a directory "
                "of their own; convert --flowtok, --tokenizer and --clip by another "
                "command"
            )
        critics.convert_metrics(flags)
        return
    if not any(paths.values()):
        raise UserError(
            "no weights named; expected --flowtok=FILE, --tokenizer=FILE and "
            "--clip=DIR, or some of them; or of --inception=FILE, --lpips=FILES, "
            "--convnext=FILE, --clip_score=DIR"
        )
    heads = parse_heads(flags.heads)
    sources = find_sources(paths, heads, flags.local_files_only)
    config = merge_sizes(sources, flags.dtype)
    vocabulary = _read_vocabulary(sources["clip"]) if "clip" in sources else None
    # Converted one by one while they are written: one group in memory at a time.
    groups = {g: functools.partial(convert_source, g, sources) for g in sources}
    pretrained.save(to_place(flags.out), config, groups, vocabulary)


def back_to_release(flags: argparse.Namespace) -> None:
    """Writes one group of --checkpoint as the state dict that the release loads."""
    if not flags.checkpoint:
        raise UserError("--to_release needs --checkpoint=DIR, the weights to write")
    target = pathlib.Path(expand_path(flags.to_release))
    state_dicts.check_target(target)  # before weights are read, which takes long
    weights = open_weights(flags.checkpoint)
    nets = weights.make_nets()
    if flags.group not in weights.groups:
        raise UserError(
            f"{weights.place} has no weights of {flags.group}; it has those of "
            f"{', '.join(weights.groups) or 'nothing'}"
        )
    params = weights.read(flags.group, abstract_group(nets, flags.group), nets)
    state = to_release(flags.group, params, pretrained.describe_nets(nets))
    state_dicts.write_state(target, state)


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    flags = make_convert_parser().parse_args(argv)
    start = time.monotonic()

    def command() -> None:
        if bool(flags.out) == bool(flags.to_release):
            raise UserError("expected one of --out=DIR and --to_release=FILE")
        if flags.out:  # before weights are read, which takes long
            check_new_directory(to_place(flags.out))
        (from_release if flags.out else back_to_release)(flags)
        peak = process_peak_bytes() / 1e9
        cli.say(
            f"wrote {flags.out or flags.to_release} in "
            f"{time.monotonic() - start:.1f} s, peak memory {peak:.2f} GB"
        )

    return cli.run_command(command, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
