"""Every record of data.train once through the tokenizer's encoder: shards of moments.

    python -m flowtok_jax.main --mode=pretokenize --config=configs/finetune.py \\
        --checkpoint=weights/xl --config.data.train=folder:photos --workdir=OUT

Each process encodes whole shards on its own devices and meets the others only at the
end. data/shard_folder.py names the files in OUT. With data.encode_first a run makes
such shards for its own flow stages.
"""

import copy
import json
import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.data import globs
from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.centre import CentreReader, Square, open_images
from flowtok_jax.data.loader import caption_options
from flowtok_jax.data.records import Records
from flowtok_jax.data.shard_folder import ShardWriter
from flowtok_jax.data.source_strings import parse_sources
from flowtok_jax.data.transforms import Filters
from flowtok_jax.models.build import Nets, make_nets
from flowtok_jax.modes.arguments import A_CHECKPOINT, Arguments
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.batches import compile_rows
from flowtok_jax.runtime.cli import join_processes, say
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, is_remote, to_place
from flowtok_jax.runtime.lock import locked
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.sampling import Programs
from flowtok_jax.tasks import abstract_group
from flowtok_jax.weights.place import find_place, open_starts

LATENTS = "latents"  # folder in a workdir


def run(arguments: Arguments) -> int:
    """Encodes the data, and says the counts as one JSON object."""
    config = arguments.training_config()
    if not arguments.flags.workdir:
        raise UserError("no folder for the shards; expected --workdir=latents, say")
    join_processes(arguments.flags)
    # Nothing has to be saved; among several processes JAX would keep it to itself.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    result = pretokenize(config, to_place(arguments.flags.workdir))
    if processes.is_first():
        say(json.dumps(result))
    return 0


def pretokenize(config: ConfigDict, out: Place) -> dict[str, Any]:
    """Writes all the shards that are missing, the manifest and the report.

    Every process of the run calls it.

    Returns:
        What `ShardWriter.run` does, and the `seconds` of all.
    """
    begun = time.monotonic()
    if config.data.transform.crop != "center" or config.data.transform.flip:
        logging.warning(
            "data.transform.crop and flip play no part: what is stored is of the centre"
        )
    nets = make_nets(config)
    result = _write(config, out, nets, lambda: _read_tokenizer(config, nets))
    return result | {"seconds": round(time.monotonic() - begun, 1)}


def _write(
    config: ConfigDict, out: Place, nets: Nets, read: Callable[[], Params]
) -> dict[str, Any]:
    """Writes the shards; the tokenizer is read after the data is found to be right."""
    if (rows := config.pretokenize.batch_size) < 1:
        raise UserError(f"pretokenize.batch_size is {rows}; expected at least 1")
    records = open_images(
        config.data.train,
        key="data.train",
        image_size=config.tokenizer.image_size,
        seed=config.train.seed,
        cache=config.data.cache,
        captions=caption_options(config),
    )
    writer = make_writer(config, out, records)
    params = read()
    # The key counts rows of a device, so that bits do not depend on their number.
    batch_size = rows * jax.local_device_count()
    with locked(out):
        return writer.run(
            _describe(config, len(records), params_sha256(params)),
            lambda: make_encode(nets, params, batch_size),
            batch_size=batch_size,
            threads=config.data.threads,
            ahead=config.data.prefetch * batch_size,
        )


def why_from_pixels(config: ConfigDict, workdir: Place) -> str:
    """Returns why a run cannot encode data.train before its flow stages; "": it can."""
    sources = parse_sources(config.data.train)
    transform = config.data.transform
    reasons = {
        "they are latents already": any(s.kind == "latents" for s in sources),
        "data.train has weights": any(s.weight is not None for s in sources),
        "data.transform crops or flips them at random": transform.flip
        or transform.crop != "center",
        "the workdir is remote": is_remote(workdir),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def encode_first(
    config: ConfigDict, workdir: Place, nets: Nets, params: Params
) -> ConfigDict:
    """Encodes data.train once, as the first flow stage of a run would at each step.

    Every process of the run calls it. Shards lie in the workdir, by the digest of the
    tokenizer that made them.

    Returns:
        The config of training on them; the same where it has to see pixels.
    """
    if reason := why_from_pixels(config, workdir):
        logging.info("images are encoded at each step: %s", reason)
        return config
    own = copy.deepcopy(config)
    own.pretokenize.format = "arrayrecord"  # whose names data.held_out splits by
    out = workdir / LATENTS / params_sha256(params)[:12]
    found = _write(own, out, nets, lambda: params)
    if processes.is_first():
        logging.info("%d images as latents in %s", found["records"], out)
    own.data.train = f"latents:{globs.escape(str(out))}/*.arrayrecord"
    return own


def make_writer(config: ConfigDict, out: Place, records: Records) -> ShardWriter:
    """Makes the writer of this config's shards."""
    centre = CentreReader(
        config.tokenizer.image_size,
        max_pixels=config.data.transform.max_pixels,
        filters=Filters(**config.data.filters),
    )
    return ShardWriter(
        out,
        records,
        centre,
        kind=config.pretokenize.format,
        shard_records=config.pretokenize.shard_records,
        max_rejected=config.data.max_rejected,
    )


def _read_tokenizer(config: ConfigDict, nets: Nets) -> Params:
    if not config.init_from:
        raise UserError(
            "no weights named; expected --checkpoint=DIR with a trained tokenizer: "
            f"{A_CHECKPOINT}"
        )
    weights = find_place("tokenizer", open_starts(config.init_from))
    return weights.read("tokenizer", abstract_group(nets, "tokenizer"), nets)


def _describe(config: ConfigDict, records: int, digest: str) -> dict[str, Any]:
    """Returns what the bytes of shards of so many records depend on."""
    options = caption_options(config)
    # A folder that was begun before there were options goes on with the usual ones.
    chosen = {} if options == CaptionOptions() else {"captions": asdict(options)}
    return {
        **chosen,
        "source": config.data.train,
        "records": records,
        "seed": config.train.seed,  # of generated scenes
        "max_pixels": config.data.transform.max_pixels,
        "filters": config.data.filters.to_dict(),
        "tokenizer": config.tokenizer.to_dict(),
        "latent": config.latent.to_dict(),
        "dtype": config.compute.dtype,
        "params_sha256": digest,
        "format": config.pretokenize.format,
        "shard_records": config.pretokenize.shard_records,
    }


def make_encode(
    nets: Nets, params: Params, batch_size: int
) -> Callable[[Sequence[Square]], jax.Array]:
    """Compiles the tokenizer's encoder of images over this process's devices."""
    mesh = make_mesh(data=-1, fsdp=1, tensor=1, devices=jax.local_devices())
    side = nets.tokenizer.image_size
    empty = np.zeros((batch_size, side, side, 3), np.uint8)
    program = Programs(nets).moments
    start = compile_rows(mesh, program, {"tokenizer": params}, empty)
    return lambda pixels: start(np.stack(pixels))
