import pytest

from flowtok_jax.modes import sample
from flowtok_jax.runtime.errors import UserError


def test_prompts_are_split_and_stripped_and_empty_ones_dropped(tmp_path):
    assert sample.split_prompts(" a b;; c ;", None) == ["a b", "c"]
    (tmp_path / "file").write_text("a; b\n\n c\n")
    assert sample.split_prompts(None, str(tmp_path / "file")) == ["a; b", "c"]


@pytest.mark.parametrize("prompts", [None, "", " ; "])
def test_no_prompts_are_refused(prompts):
    with pytest.raises(UserError, match="no prompts.*--prompts=.*--prompts_file="):
        sample.split_prompts(prompts, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"\xff\xfe\x00", "cannot be read"), (b"\n", "no prom")],
)
def test_a_prompts_file_without_prompts_is_refused(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        sample.split_prompts(None, str(path))
    assert "\n" not in str(error.value)


def test_names_of_samples_hold_the_start_of_any_prompt(flowtok, tmp_path):
    prompts = ["A red/circle?", "é", "circle " * 30]
    paths = sample.sample(flowtok, prompts, tmp_path / "new", 0)
    assert [p.name for p in paths[:2]] == ["0000_a_red_circle.png", "0001_.png"]
    assert len(paths[2].stem) < 70
    assert all(p.is_file() for p in paths)
