"""Which file --config means, and what a config file may import."""

import sys

import jax
import numpy as np
import pytest
from ml_collections.config_flags.tuple_parser import TupleParser

from configs import default
from flowtok_jax.runtime import config
from flowtok_jax.runtime.errors import UserError
from tests import run

CONFIGS = run.ROOT / "configs"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, empty; what configs import is forgotten after the test."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "configs", None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("value", ["configs/h.py:1", "h.py:1"])
def test_a_config_that_comes_with_the_package_is_found_from_any_folder(folder, value):
    assert config.find_config(value) == f"{CONFIGS}/h.py:1"
    assert config.find_config(f"{CONFIGS}/h.py") == f"{CONFIGS}/h.py"


def test_a_file_in_the_working_directory_comes_first(folder):
    (folder / "configs").mkdir()
    (folder / "configs" / "h.py").touch()
    assert config.find_config("configs/h.py:1") == "configs/h.py:1"
    assert config.find_config("h.py") == f"{CONFIGS}/h.py"


@pytest.mark.parametrize("path", ["configs/g.py", "configs", "/nowhere/h.py", "."])
def test_what_is_nowhere_is_refused_with_what_there_is(folder, path):
    message = rf"--config={path} does not exist.*configs/demo.py.*configs/xl.py$"
    with pytest.raises(UserError, match=message):
        config.find_config(f"{path}:t2i")


def test_every_config_of_a_command_line_is_found_and_the_rest_stays(folder):
    flags = ["--config.train.seed=1", "--workdir", "h.py", "--json"]
    given = ["main", "--config=h.py", "--config", "demo.py:t2i", *flags]
    found = config.find_configs(given)
    assert found[1:4] == [
        f"--config={CONFIGS}/h.py",
        "--config",
        f"{CONFIGS}/demo.py:t2i",
    ]
    assert [found[0], *found[4:]] == ["main", *flags]
    assert config.find_configs(["main"]) == ["main"]


def write(path, *lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_config_imports_files_beside_it_and_those_of_the_package(folder):
    write(folder / "configs" / "base.py", "STEPS = 7")
    own = write(
        folder / "configs" / "mine.py",
        "from configs import base, default",
        "def get_config():",
        "    config = default.get_config()",
        "    config.train.num_steps = base.STEPS",
        "    return config",
    )
    config.check_config_flags(["main", f"--config={own}", "--config.train.seed=2"])
    assert sys.modules["configs.base"].STEPS == 7
    assert sys.modules["configs.default"].__file__ == str(CONFIGS / "default.py")
    with pytest.raises(UserError, match=r"--config.train.sed: no such key.*seed"):
        config.check_config_flags(["main", f"--config={own}", "--config.train.sed=2"])


def test_an_own_file_stands_for_one_of_the_package_only_beside_the_config(folder):
    write(folder / "configs" / "default.py", "raise RuntimeError('another project')")
    own = write(folder / "own" / "mine.py", "from configs.demo import get_config")
    config.check_config_flags(["main", f"--config={own}:t2i", "--config.stages=x"])
    assert sys.modules["configs.default"].__file__ == str(CONFIGS / "default.py")
    config.check_config_flags(["main", f"--config={CONFIGS}/h.py:512"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(:\n", "line 1: SyntaxError: invalid syntax"),
        ("\nimport nosuch_module\n", "line 2: ModuleNotFoundError: No module named"),
        (
            "def get_config():\n    raise ValueError('a\\n b')",
            "line 2: ValueError: a b$",
        ),
        ("x = 1\n", "defines no get_config; expected a function"),
        ("def get_config():\n    return 1\n", "takes no argument; got 'big'"),
    ],
    ids=["syntax", "import", "raises", "nothing", "variant"],
)
def test_a_config_file_that_fails_is_named_with_its_line(folder, text, said):
    (folder / "mine.py").write_text(text)
    variant = ":big" * ("takes" in said)
    with pytest.raises(UserError, match=rf"^--config=mine.py .*{said}"):
        config.check_config_flags(["main", f"--config=mine.py{variant}"])


@pytest.mark.parametrize("value", [0, 7, 2**31, 2**32 - 1])
def test_a_seed_is_used_as_it_is_whatever_integer_holds_it(value):
    seeds = [value, np.uint64(value), np.array(value), jax.numpy.uint32(value)]
    found = [config.check_seed("seed", seed) for seed in seeds]
    assert found == [value] * 4
    assert {type(seed) for seed in found} == {int}
    assert jax.random.key_data(jax.random.key(found[0])).tolist() == [0, value]


NO_SEEDS = [-1, 2**32, 2**63, 2**64, -(2**70), 10**400, 1.0, float("nan"), "1", None]
NO_SEEDS += [10**9999, np.zeros((2, 1)), "a\nb"]
NO_SEEDS += [True, np.True_, np.int64(-1), np.float32(1), [1], b"1", np.arange(2)]


@pytest.mark.parametrize("value", NO_SEEDS, ids=lambda v: type(v).__name__)
def test_what_is_no_seed_is_refused_in_one_line(value):
    message = r"^train.seed is .*; expected an integer from 0 to 2\*\*32 - 1$"
    with pytest.raises(UserError, match=message) as error:
        config.check_seed("train.seed", value)
    assert len(str(error.value)) < 200


DEMO = ["main", f"--config={CONFIGS}/demo.py"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("data.filters.aspect=0.5,2", (0.5, 2.0)),
        ("data.filters.aspect=(0.5, 2)", (0.5, 2.0)),
        ("data.filters.aspect=[0,inf]", (0.0, sys.float_info.max)),
        ("optimizer.betas=.9,.99,", (0.9, 0.99)),
        ("bench.batch_sizes=4", (4,)),
        ("bench.batch_sizes=(4,8)", (4, 8)),
        ("stages=t2i,i2t", ("t2i", "i2t")),
        ("stages=(t2i, i2t)", ("t2i", "i2t")),
        ("stages=('t2i',\"i2t\")", ("t2i", "i2t")),
        ("eval.parts=t2i", ("t2i",)),
        ("eval.parts=()", ()),
        ("eval.parts=", ()),
    ],
)
def test_a_tuple_is_read_with_or_without_brackets_and_quotes(flag, value):
    *_, found = config.check_config_flags([*DEMO, f"--config.{flag}"])
    key, _, text = found.partition("=")
    assert key == f"--config.{flag.partition('=')[0]}"
    assert TupleParser().parse(text) == value


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("data.filters.aspect=x", "expected numbers, as in 0.0,1000000.0"),
        ("data.filters.aspect=None", "expected numbers"),
        ("data.filters.aspect=", "expected 2 numbers"),
        ("data.filters.aspect=0.5", "expected 2 numbers"),
        ("data.filters.aspect=1,2,3", "expected 2 numbers"),
        ("data.filters.aspect=nan,2", "expected numbers"),
        ("data.filters.aspect={'a':1}", "expected numbers"),
        ("optimizer.betas=0.9;0.95", "expected numbers, as in 0.9,0.95"),
        ("bench.batch_sizes=2.5", "expected whole numbers, as in 4"),
        ("bench.num_steps=x", "expected whole numbers, as in"),
    ],
)
def test_a_tuple_of_other_things_is_refused(flag, expected):
    with pytest.raises(UserError) as error:
        config.check_config_flags([*DEMO, f"--config.{flag}"])
    assert str(error.value).startswith(f"--config.{flag}: {expected}")


@pytest.mark.parametrize(
    ("seed", "num_images", "message"),
    [
        (0, 0, "^num_images is 0; expected an integer from 1"),
        (0, True, "^num_images is True; expected"),
        (2**32 - 1, 2, "needs seeds up to 4294967296; expected at most 4294967295"),
    ],
)
def test_seeds_that_cannot_be_are_refused(seed, num_images, message):
    with pytest.raises(UserError, match=message):
        config.choose_seeds(seed, num_images)
    assert config.choose_seeds(2**32 - 2, 2)[-1] == 2**32 - 1


@pytest.mark.parametrize("key", ["train.seed", "text.seed", "eval.seed"])
def test_seeds_of_a_config_are_seeds(key):
    made = default.get_config()
    config.check_values(made)
    for value in (0, 2**32 - 1):
        made.update_from_flattened_dict({key: value})
        config.check_values(made)
    for value in (-1, 2**32, 2**64):
        made.update_from_flattened_dict({key: value})
        with pytest.raises(UserError, match=f"^{key} is {value}; expected an integer"):
            config.check_values(made)


def test_seeds_of_a_stage_and_a_run_without_stages_are_refused():
    made = default.get_config()
    made.per_stage.t2i = {"train": {"seed": -1}}
    with pytest.raises(UserError, match=r"^per_stage\.t2i\.train\.seed is -1"):
        config.check_values(made)
    made = default.get_config()
    made.stages = ()
    with pytest.raises(UserError, match="^stages is empty"):
        config.check_values(made)


def test_a_config_below_home_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "mine.py").touch()
    assert config.find_config("~/mine.py:x") == f"{folder}/mine.py:x"


def test_keys_that_an_older_version_lacks_are_added_with_their_defaults():
    whole = config.config_from_json(config.config_to_json(default.get_config()))
    older = whole.copy_and_resolve_references()
    with older.unlocked():
        del older.data.held_out, older.data.caption_keys, older.eval.retrieval
        del older.train.seed, older.pretokenize
    older.data.cache = "elsewhere"
    config.add_new_keys(older, "data", "eval", "pretokenize")
    assert older.eval == whole.eval
    assert (older.data.held_out, older.data.cache) == (0.0, "elsewhere")
    assert older.data.caption_keys == whole.data.caption_keys
    assert "seed" not in older.train
    assert "pretokenize" not in older
