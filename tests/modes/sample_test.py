import logging

import pytest
from PIL import Image

from flowtok_jax.modes import sample


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red/circle?", "0000_a_red_circle.png"),
        ("Ein Caf\u00e9", "0000_ein_cafe.png"),
        ("e\u0301te\u0301 \u2014 \ufb01n", "0000_ete_fin.png"),
        ("猫", "0000.png"),
        ("", "0000.png"),
        ("../../etc/passwd", "0000_etc_passwd.png"),
        ("a\0b\nc", "0000_a_b_c.png"),
        ("😀" * 200, "0000.png"),
        ("x" * 999, f"0000_{'x' * 60}.png"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_any_prompt_has_a_file_with_a_name_of_ascii(flowtok, tmp_path, prompt, name):
    path, _ = sample.sample(flowtok, [prompt], tmp_path, 0)
    assert path.name == name
    with Image.open(path) as image:
        assert image.size == (32, 32)


def test_prompts_whose_letters_are_the_same_have_a_file_each(flowtok, tmp_path):
    prompts = ["a b", "A, b!", "猫", "犬", "a b"]
    paths = sample.sample(flowtok, prompts, tmp_path, 0)
    assert len(set(paths)) == 6
    assert all(path.is_file() for path in paths)


def test_many_prompts_are_drawn_in_slices_as_if_at_once(
    flowtok, tmp_path, monkeypatch, caplog
):
    prompts = [f"a red circle {i}" for i in range(11)]
    options = flowtok.sample._replace(batch_size=2)
    monkeypatch.setattr(flowtok, "sample", options)
    whole = sample.sample(flowtok, prompts, tmp_path / "whole", 0)
    monkeypatch.setattr(sample, "SLICE", 2)
    monkeypatch.setattr(sample, "SHOWN", 6)
    with caplog.at_level(logging.INFO):
        parts = sample.sample(flowtok, prompts, tmp_path / "parts", 0)
    assert caplog.messages[-1] == "grid.png shows the first 6 of 11"
    assert [p.name for p in parts] == [p.name for p in whole]
    for one, other in zip(whole[:-1], parts[:-1], strict=True):
        assert one.read_bytes() == other.read_bytes()
    with Image.open(whole[-1]) as all_of_them, Image.open(parts[-1]) as some:
        assert all_of_them.height > 1.5 * some.height


def test_pictures_of_an_earlier_run_are_replaced_and_counted(flowtok, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        first = sample.sample(flowtok, ["a", "b"], tmp_path, 0)
        assert "replaced" not in caplog.text
        second = sample.sample(flowtok, ["a", "c"], tmp_path, 1)
    assert f"2 pictures of an earlier run in {tmp_path} are replaced" in caplog.text
    assert first[0] == second[0]
    assert first[1].is_file()
