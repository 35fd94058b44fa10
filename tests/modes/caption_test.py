import logging

import numpy as np
import pytest
from PIL import Image

from flowtok_jax.modes.caption import caption as caption_files
from flowtok_jax.runtime.errors import UserError


@pytest.fixture
def caption(flowtok):
    """Captions the files of a pattern: how many failed, and the lines said."""

    def run(pattern):
        lines = []
        failed = caption_files(flowtok, str(pattern), 0, False, lines.append)
        return failed, lines

    return run


def test_broken_files_are_named_and_the_rest_done(caption, tmp_path, caplog):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(
        tmp_path / "a.png"
    )
    whole = (tmp_path / "a.png").read_bytes()
    broken = {
        "empty.png": b"",
        "half.png": whole[: len(whole) // 2],
        "text.png": b"no image",
        "values.ppm": b"P3 2 2 255 1 2 3 x y z",  # a ValueError in Pillow
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.ERROR):
        failed, lines = caption(f"{tmp_path}/*")
    assert failed == 4
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / 'a.png'}: ")
    *named, counted = caplog.messages
    for name, message in zip(sorted(broken), named, strict=True):
        assert str(tmp_path / name) in message
    assert counted == "4 of 5 files could not be read"


def test_where_no_file_is_an_image_nothing_is_said(caption, tmp_path, caplog):
    (tmp_path / "a.txt").touch()
    assert caption(f"{tmp_path}/a.txt") == (1, [])
    assert "1 of 1" in caplog.text


@pytest.mark.parametrize("pattern", ["*.webp", "**.png/x", "", "folder", "a[", "\0"])
def test_a_pattern_that_matches_no_file_is_refused(caption, tmp_path, pattern):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="matches no file"):
        caption(f"{tmp_path}/{pattern}")


def test_of_a_folder_the_message_says_the_pattern_of_its_images(caption, tmp_path):
    with pytest.raises(UserError, match=rf"such as '{tmp_path}/\*.png'"):
        caption(tmp_path)


def test_a_path_with_brackets_names_itself_and_a_star_matches_once(caption, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a[1].png")
    for pattern in ("a[1].png", "*.png", "**/*.png"):
        failed, lines = caption(f"{tmp_path}/{pattern}")
        assert (failed, len(lines)) == (0, 1)
