import logging
import pathlib

import pytest
from PIL import Image

from flowtok_jax.modes import sample


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red/circle?", "0000_a_red_circle_seed0.png"),
        ("Ein Caf\u00e9", "0000_ein_cafe_seed0.png"),
        ("e\u0301te\u0301 \u2014 \ufb01n", "0000_ete_fin_seed0.png"),
        ("猫", "0000_seed0.png"),
        ("", "0000_seed0.png"),
        ("../../etc/passwd", "0000_etc_passwd_seed0.png"),
        ("a\0b\nc", "0000_a_b_c_seed0.png"),
        ("😀" * 200, "0000_seed0.png"),
        ("x" * 999, f"0000_{'x' * 60}_seed0.png"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_any_prompt_has_a_file_with_a_name_of_ascii(flowtok, tmp_path, prompt, name):
    path, _ = sample.sample(flowtok, [prompt], tmp_path)
    assert path.name == name
    with Image.open(path) as image:
        assert image.size == (32, 32)


def test_prompts_whose_letters_are_the_same_have_a_file_each(flowtok, tmp_path):
    prompts = ["a b", "A, b!", "猫", "犬", "a b"]
    paths = sample.sample(flowtok, prompts, tmp_path)
    assert len(set(paths)) == 6
    assert all(path.is_file() for path in paths)


def test_many_prompts_are_drawn_in_slices_as_if_at_once(
    flowtok, tmp_path, monkeypatch, caplog
):
    prompts = [f"a red circle {i}" for i in range(11)]
    options = flowtok.sample._replace(batch_size=2)
    monkeypatch.setattr(flowtok, "sample", options)
    whole = sample.sample(flowtok, prompts, tmp_path / "whole")
    monkeypatch.setattr(sample, "SLICE", 2)
    monkeypatch.setattr(sample, "SHOWN", 6)
    with caplog.at_level(logging.INFO):
        parts = sample.sample(flowtok, prompts, tmp_path / "parts")
    assert caplog.messages[-1] == "grid.png shows the first 6 of 11"
    assert [p.name for p in parts] == [p.name for p in whole]
    for one, other in zip(whole[:-1], parts[:-1], strict=True):
        assert one.read_bytes() == other.read_bytes()
    with Image.open(whole[-1]) as all_of_them, Image.open(parts[-1]) as some:
        assert all_of_them.height > 1.5 * some.height


def test_each_image_of_a_prompt_is_drawn_again_by_its_seed_alone(
    flowtok, tmp_path, monkeypatch
):
    monkeypatch.setattr(sample, "SLICE", 2)  # seeds at a time, too
    prompts = ["a red circle", "b"]
    paths = sample.sample(flowtok, prompts, tmp_path / "all", range(5, 8))
    names = [
        f"{p}_seed{s}.png" for p in ("0000_a_red_circle", "0001_b") for s in (5, 6, 7)
    ]
    assert [path.name for path in paths] == [*names, "grid.png"]
    found = [path.read_bytes() for path in paths[:-1]]
    assert len(set(found)) == 6
    for seed in (5, 6, 7):
        again = sample.sample(
            flowtok, prompts, tmp_path / str(seed), range(seed, seed + 1)
        )
        for path in again[:-1]:
            assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()


def test_a_picture_has_the_pixels_of_its_prompt_number_and_seed(flowtok, tmp_path):
    prompts = ["a red circle", "a blue square"]
    paths = sample.sample(flowtok, prompts, tmp_path, range(3, 4))
    drawn = flowtok.draw(prompts, 3)
    for path, picture in zip(paths[:-1], drawn, strict=True):
        with Image.open(path) as image:
            assert image.tobytes() == picture.tobytes()


def test_images_of_a_prompt_stand_in_rows_of_their_own(flowtok, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(sample, "COLUMNS", 2)
    monkeypatch.setattr(sample, "SHOWN", 5)
    draw = sample.pictures.grid
    monkeypatch.setattr(
        sample.pictures,
        "grid",
        lambda *args, **o: shown.append(args) or draw(*args, **o),
    )
    sample.sample(flowtok, ["a", "b"], tmp_path, range(3))
    ((rows, captions),) = shown
    assert [len(row) for row in rows] == [2, 1, 2]
    assert captions == [["seed 0: a", "seed 1"], ["seed 2"], ["seed 0: b", "seed 1"]]


def test_a_long_prompt_is_shortened_in_the_grid(flowtok, tmp_path):
    heights = []
    for words in (200, 2000):
        *_, grid = sample.sample(flowtok, ["circle " * words], tmp_path / str(words))
        with Image.open(grid) as image:
            heights.append(image.height)
    assert heights[0] == heights[1] == 128 + 2 * 8 + sample.LINES * 16


def test_each_call_has_a_folder_of_its_own(tmp_path):
    assert sample.new_folder(tmp_path / "samples").name == "0001"
    (tmp_path / "samples" / "grid.png").touch()
    assert sample.new_folder(tmp_path / "samples").name == "0002"
    (tmp_path / "samples" / "0041").mkdir()
    (tmp_path / "samples" / "old").mkdir()
    assert sample.new_folder(tmp_path / "samples").name == "0042"
    assert {p.name for p in (tmp_path / "samples").iterdir() if p.is_dir()} == {
        *("0001", "0002", "0041", "0042", "old")
    }


def test_a_number_that_another_call_takes_meanwhile_is_left_to_it(
    tmp_path, monkeypatch
):
    mkdir = pathlib.Path.mkdir

    def raced(path, *args, **options):
        if path.name == "0001":
            mkdir(path, *args, **options)
        mkdir(path, *args, **options)

    monkeypatch.setattr(pathlib.Path, "mkdir", raced)
    assert sample.new_folder(tmp_path).name == "0002"
