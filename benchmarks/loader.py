"""Benchmark of the training loader on images and latents, against a plain loop.

    .venv/bin/python benchmarks/loader.py [--images=1000] [--latents=40000] [--scale=1]

The script writes its own data to a temporary directory: photograph-like JPEGs of
640 x 480, times the scale, and latents [77, 32] with a caption and a recaption each.
Every figure is the best of three passes, after one that fills the page cache. Images
are resized to 256 px. The loader's rows include caption ids, by a vocabulary of words.
A later epoch takes images from memory, where all fit into data.keep_gib.
"""

import argparse
import functools
import io
import itertools
import pathlib
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags as absl_flags
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import default  # noqa: E402 (the path comes first)
from flowtok_jax.data import shards  # noqa: E402
from flowtok_jax.data.loader import Loader, make_vocabulary, open_source  # noqa: E402
from flowtok_jax.data.records import Record  # noqa: E402

SIDE = 256  # pixels
BATCH = 50
LATENT_BATCH = 4096
PASSES = 3


def say(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def photographs(count: int, scale: int) -> Iterator[bytes]:
    """Yields JPEG files of smooth images with some noise, of a photograph's size."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
        size = (640 * scale, 480 * scale)
        image = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), int)
        noisy = np.clip(image + rng.normal(0, 6, image.shape), 0, 255)
        buffer = io.BytesIO()
        Image.fromarray(noisy.astype(np.uint8)).save(buffer, "JPEG", quality=85)
        yield buffer.getvalue()


def write_images(folder: pathlib.Path, count: int, scale: int) -> None:
    """Writes the same images as a folder and as two tars."""
    (folder / "images").mkdir()
    for i, data in enumerate(photographs(count, scale)):
        (folder / "images" / f"{i:06d}.jpg").write_bytes(data)
        (folder / "images" / f"{i:06d}.txt").write_text(f"picture number {i}")
    files = sorted((folder / "images").iterdir())
    for i, part in enumerate((files[:count], files[count:])):
        with tarfile.open(folder / f"{i}.tar", "w") as tar:
            for path in part:
                tar.add(path, path.name)


def latent_records(count: int, seed: int) -> Iterator[Record]:
    """Yields records of random moments with two captions."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        moments = rng.standard_normal((77, 32), np.float32).astype(np.float16)
        recaption = f"The image shows number {i} of {seed} in somewhat more words."
        yield Record(f"{seed}_{i}", (f"number {i}",), (recaption,), moments=moments)


def plain_loop(folder: pathlib.Path) -> Iterator[int]:
    """Loads images as one would by hand: one thread and no checks."""
    rows = []
    for path in sorted((folder / "images").glob("*.jpg")):
        path.with_suffix(".txt").read_text()
        with Image.open(path) as image:
            scale = SIDE / min(image.size)
            size = [max(SIDE, int(length * scale)) for length in image.size]
            image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        left, top = ((length - SIDE) // 2 for length in image.size)
        rows.append(np.asarray(image.crop((left, top, left + SIDE, top + SIDE))))
        if len(rows) == BATCH:
            yield len(np.stack(rows))
            rows = []


def epoch(
    spec: str,
    folder: pathlib.Path,
    batch_size: int,
    threads: int = 1,
    workers: int = 0,
    number: int = 0,
) -> Iterator[int]:
    """Yields the batch sizes of an epoch as training loads it, captions encoded."""
    config = default.get_config()
    config.data.update({"train": spec, "threads": threads, "workers": workers})
    config.data.cache = str(folder / "cache")
    config.train.batch_size = batch_size
    config.text.vocabulary = "captions"
    batches = Loader(config, make_vocabulary(config), start_step=0)
    count = len(open_source(config, spec)) // batch_size
    wanted = itertools.islice(batches, number * count, (number + 1) * count)
    return (len(batch["caption_ids"]) for batch in wanted)


def measure(name: str, make: Callable[[], Iterator[int]], workers: int = 0) -> None:
    """Prints the rates of the best pass, by the clock and by the time of the cores."""
    by_clock = []
    by_core = []  # other work on the machine hardly changes this rate
    for _ in range(PASSES + 1):
        counts = iter(make())
        next(counts)  # threads and processes start with the first batch
        begun = time.perf_counter()
        spent = time.process_time()
        total = sum(counts)
        by_clock.append(total / (time.perf_counter() - begun))
        by_core.append(total / (time.process_time() - spent))
    # process_time leaves out the time of worker processes.
    core = "" if workers else f"{max(by_core[1:]):10.0f} a core's second"
    say(f"{name:36} {max(by_clock[1:]):10.0f} /s {core}")


def main() -> None:
    """Writes the data and measures each way of loading it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--latents", type=int, default=40_000)
    parser.add_argument("--scale", type=int, default=1)
    flags = parser.parse_args()
    absl_flags.FLAGS.mark_as_parsed()  # grain's worker processes read them
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_images(folder, flags.images, flags.scale)
        measure("images: plain PIL loop, one core", lambda: plain_loop(folder))
        specs = {"folder": f"folder:{name}/images", "tars": f"tars:{name}/*.tar"}
        for (kind, spec), (threads, workers) in itertools.product(
            specs.items(), ((16, 0), (1, 2))
        ):
            how = f"{workers} workers" if workers else f"{threads} threads"
            load = functools.partial(epoch, spec, folder, BATCH, threads, workers)
            measure(f"images: {kind}, {how}", load, workers)
        load = functools.partial(epoch, specs["folder"], folder, BATCH, 16, number=1)
        measure("images: folder, a later epoch", load)
        for i in range(4):
            records = list(latent_records(flags.latents // 4, i))
            shards.write_arrayrecord(folder / f"{i}.arrayrecord", records)
            shards.write_release_tar(folder / f"latents-{i}.tar", records)
        for kind in ("*.arrayrecord", "latents-*.tar"):
            load = functools.partial(epoch, f"latents:{name}/{kind}", folder)
            measure(f"latents: {kind}", lambda f=load: f(LATENT_BATCH))


if __name__ == "__main__":
    main()
