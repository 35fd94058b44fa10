"""Settings of every test: 8 CPU devices, no silent broadcasts, warnings are errors."""

import os
import pathlib
import signal
import tempfile

import jax
import pytest

# The tests of the marker `fast`: enough of everything to trust another Python, with a
# run of all stages, its resumption and the commands that use its weights.
FAST = (
    "configs_test.py",
    "data",
    "demo_test.py",
    "flow",
    "fuzz",
    "main_test.py",
    "models/build_test.py",
    "models/clip_test.py",
    "models/dit_test.py",
    "models/layers_test.py",
    "models/text_test.py",
    "models/tokenizer_test.py",
    "packaging_test.py",
    "perf/profile_test.py",
    "runtime/config_test.py",
    "train/checkpoint_test.py",
    "weights",
)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tiny programs take far longer to compile than to run: these save four fifths of it.
# Other processes started by tests inherit them.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# Never the person's own: of what a run of the tests compiles nothing stays.
PROGRAMS = tempfile.TemporaryDirectory(prefix="flowtok_programs_")
os.environ["FLOWTOK_COMPILATION_CACHE"] = PROGRAMS.name
if jax.__version_info__ < (0, 11):  # a later jaxlib may lack the flag, and abort
    flags = os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = " ".join(flags)


# Of a run in the background the shell has Ctrl-C ignored, and what tests start inherits
# that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_as_before():
    """A command that a test calls in this process sets up logging of its own."""
    # Later than the import hook that checks types.
    from tests.run import own_logging  # noqa: PLC0415

    with own_logging():
        yield


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
    # jaxlib 0.12 makes the profiler's types at their first use; where Python 3.12 and
    # newer warn of one, and the warning is an error, the process crashes.
    ignored = "ignore:builtin type .* has no __module__:DeprecationWarning"
    config.addinivalue_line("filterwarnings", ignored)
    # transformers 5.0 to 5.15, whose tokenizer of CLIP is told so by tokenizers 0.22.
    ignored = "ignore:Deprecated in 0.9.0.*BPE:DeprecationWarning"
    config.addinivalue_line("filterwarnings", ignored)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items):
    here = pathlib.Path(__file__).parent
    paths = [here / name for name in FAST]
    if absent := [str(path) for path in paths if not path.exists()]:
        raise pytest.UsageError(f"FAST in tests/conftest.py names {absent}")
    for item in items:
        if any(item.path.is_relative_to(path) for path in paths):
            item.add_marker("fast")


# The package is imported late: its types are checked only in what is imported after
# this file.


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A run of the tiny demo, for every test that needs trained weights; read-only."""
    from tests import run

    return run.make_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def flowtok(demo):
    """The tiny demo's weights."""
    from flowtok_jax.pipeline import FlowTok

    return FlowTok.from_pretrained(demo.workdir)


@pytest.fixture
def cli(monkeypatch, capsys):
    """Calls the command line in this process."""
    from tests import run

    return run.Cli(monkeypatch, capsys)
