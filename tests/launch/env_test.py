"""env.sh: every flag is one that jaxlib, or libtpu, knows."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.launch.conftest import LAUNCH, ROOT

ENV = LAUNCH / "env.sh"


def flags(kind: str) -> list[str]:
    """The flags that env.sh lists for gpu or tpu."""
    code = f'source "$0" {kind} && printf "%s\\n" "${{{kind}_flags[@]}}"'
    command = ["bash", "-ceu", code, str(ENV)]
    return subprocess.check_output(command, text=True).splitlines()


def sourced(kind: str, name: str, **variables: str) -> str:
    """A variable as a process sees it that env.sh has prepared."""
    code = f'source "$0" {kind} && printenv {name}'
    command = ["bash", "-ceu", code, str(ENV)]
    return subprocess.check_output(
        command, text=True, env=os.environ | variables
    ).strip()


def jax(code: str, **variables: str) -> subprocess.CompletedProcess:
    """A Python process on the CPU with these variables."""
    return subprocess.run(
        [sys.executable, "-c", f"import jax; {code}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("flag", flags("gpu"))
def test_jaxlib_knows_each_xla_flag(flag):
    outcome = jax("jax.device_count()", XLA_FLAGS=flag)
    assert outcome.returncode == 0, outcome.stderr


def test_jaxlib_aborts_at_a_flag_that_it_does_not_know():
    outcome = jax("jax.device_count()", XLA_FLAGS="--xla_gpu_no_such_flag=1")
    assert outcome.returncode != 0
    assert "Unknown flag" in outcome.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs `pip install libtpu`"
)
@pytest.mark.parametrize(
    ("flag", "known"), [*((x, True) for x in flags("tpu")), ("--xla_tpu_none=1", False)]
)
def test_libtpu_knows_each_flag(flag, known):
    code = (
        "from jax.experimental import topologies as t; "
        "t.get_topology_desc(platform='tpu', topology_name='v5e:2x2')"
    )
    variables = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    outcome = jax(code, LIBTPU_INIT_ARGS=flag, **variables)
    assert (outcome.returncode == 0) == known, outcome.stderr


@pytest.mark.parametrize(
    ("kind", "name"), [("gpu", "XLA_FLAGS"), ("tpu", "LIBTPU_INIT_ARGS")]
)
def test_flags_that_are_set_already_come_last_and_win(kind, name):
    assert sourced(kind, name, **{name: "--mine=1"}).split() == [
        *flags(kind),
        "--mine=1",
    ]


def test_memory_leaves_room_for_h_and_for_cuda():
    fraction = float(sourced("gpu", "XLA_CLIENT_MEM_FRACTION"))
    # 79.2 GiB is what an A100 of 80 GB has; 74 is what H may take.
    assert 74 < fraction * 79.2 < 77
    mine = sourced("gpu", "XLA_CLIENT_MEM_FRACTION", XLA_CLIENT_MEM_FRACTION="0.5")
    assert mine == "0.5"
