import logging

import numpy as np
import pytest
from PIL import Image

from flowtok_jax.modes.caption import caption as caption_files
from flowtok_jax.runtime.errors import UserError


@pytest.fixture
def caption(flowtok):
    """Captions the files of patterns: how many failed, and the lines said."""

    def run(*patterns):
        lines = []
        patterns = [str(pattern) for pattern in patterns]
        failed = caption_files(flowtok, patterns, 0, False, lines.append)
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
    with pytest.raises(UserError, match="matches no file|is no path: it has a NUL"):
        caption(f"{tmp_path}/{pattern}")


def test_the_images_of_a_folder_are_captioned_in_order(caption, tmp_path):
    for name in ("b.png", "a.JPG", "c.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "Thumbs.db").touch()
    (tmp_path / "._a.png").touch()
    (tmp_path / "inside").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "inside" / "d.png")
    for pattern in (tmp_path, f"{tmp_path}/", f"{tmp_path}*"):
        failed, lines = caption(pattern)
        names = [line.split(": ")[0].rpartition("/")[2] for line in lines]
        assert (failed, names) == (0, ["a.JPG", "b.png", "c.webp"])


def test_several_paths_are_captioned_in_their_order_and_each_file_once(
    caption, tmp_path
):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    failed, lines = caption(tmp_path / "b.png", tmp_path, f"{tmp_path}/a*")
    names = [line.split(": ")[0].rpartition("/")[2] for line in lines]
    assert (failed, names) == (0, ["b.png", "a.png"])
    with pytest.raises(UserError, match=r"nowhere.png matches no file; .* a folder"):
        caption(tmp_path, tmp_path / "nowhere.png")


def test_a_path_with_brackets_names_itself_and_a_star_matches_once(caption, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a[1].png")
    for pattern in ("a[1].png", "*.png", "**/*.png"):
        failed, lines = caption(f"{tmp_path}/{pattern}")
        assert (failed, len(lines)) == (0, 1)


def test_folders_with_odd_names_and_the_home_directory_are_found(
    caption, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "[2024] my, photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "[2024] my, photos" / "a.png")
    for pattern in (
        "~/[2024] my, photos/*.png",
        "'~/[2024] my, photos'/*.png",
        f"file://{tmp_path}/[2024]%20my,%20photos/{{a,a}}.png",
    ):
        failed, lines = caption(pattern)
        assert (failed, len(lines)) == (0, 1)


def test_odd_names_of_files_are_one_line_each(caption, tmp_path):
    names = ["a\nb.png", "caf\udce9.png", "猫 \u2028.png"]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    failed, lines = caption(f"{tmp_path}/*.png")
    shown = [r"a\nb.png: ", r"caf\udce9.png: ", r"猫 \u2028.png: "]
    assert failed == 0
    for line, name in zip(lines, shown, strict=True):
        assert line.startswith(f"{tmp_path}/{name}")
        assert line.encode()
        assert len(line.splitlines()) == 1


def test_a_tilde_inside_quotes_is_the_home_folder(caption, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    failed, lines = caption("~/*.png")
    assert (failed, len(lines)) == (0, 1)


def test_many_files_are_captioned_in_slices_as_if_at_once(
    flowtok, caption, tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    for i in range(9):
        values = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    monkeypatch.setattr(flowtok, "caption", flowtok.caption._replace(batch_size=2))
    whole = caption(f"{tmp_path}/*.png")
    seen = []
    draw = flowtok.image_to_text
    monkeypatch.setattr(
        flowtok, "image_to_text", lambda x, *rest: seen.append(rest) or draw(x, *rest)
    )
    monkeypatch.setattr("flowtok_jax.modes.caption.SLICE", 2)
    assert caption(f"{tmp_path}/*.png") == whole
    assert seen == [(0, 0), (0, 3)]
