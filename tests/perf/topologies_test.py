"""Names of topologies, and errors that say what to do."""

import os
import subprocess
import sys

import pytest

from flowtok_jax.perf import topologies
from flowtok_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    ("name", "kind", "sizes"),
    [
        ("v5e:16x16", "v5e", (16, 16)),
        ("v6e:8x8", "v6e", (8, 8)),
        ("v5p:2x2x2", "v5p", (2, 2, 2)),
        ("a100:8", "a100", (8,)),
    ],
)
def test_a_name_is_a_kind_and_sizes(name, kind, sizes):
    assert topologies.parse_topology(name) == (kind, sizes)


@pytest.mark.parametrize("kind", topologies.KINDS.values(), ids=topologies.KINDS)
def test_examples_are_topologies(kind):
    assert topologies.KINDS[topologies.parse_topology(kind.example)[0]] == kind


@pytest.mark.parametrize(
    "name",
    [
        "",
        "v5e",
        "v5e:",
        "v5e:16",
        "v5e:4x4x4",
        "v5p:4x4",
        "a100:2x4",
        "a100:0",
        "h200:8",
    ],
)
def test_another_name_is_refused_with_the_choices(name):
    with pytest.raises(UserError, match="v5e, v6e, v5p, a100, such as v5e:16x16,"):
        topologies.parse_topology(name)


@pytest.mark.parametrize("name", ["v5e:4x4", "a100:8"])
def test_an_absent_extra_is_named_with_the_line_that_installs_it(name, monkeypatch):
    monkeypatch.setattr(topologies, "MODULES", {"tpu": ("no_a",), "cuda": ("no_b.c",)})
    line = r"needs the package no_\w.*; run: pip install 'flowtok_jax\[compile\]'$"
    with pytest.raises(UserError, match=line) as caught:
        topologies.devices(name)
    assert "\n" not in str(caught.value)


def test_gpus_beyond_a_host_come_in_whole_hosts(monkeypatch):
    monkeypatch.setattr(topologies, "MODULES", {"cuda": ()})
    with pytest.raises(UserError, match="a100:12; expected at most 8 GPUs, or"):
        topologies.devices("a100:12")


def test_the_target_of_an_a100_is_an_a100_of_80_gb():
    text = (topologies.TARGETS / "a100_80gb.txtpb").read_text()
    lines = dict(
        line.strip().split(": ")
        for line in text.splitlines()
        if ": " in line and "{" not in line and "#" not in line
    )
    assert lines["device_description_str"] == '"NVIDIA A100-SXM4-80GB"'
    gib = int(lines["device_memory_size"]) / 2**30
    assert gib == pytest.approx(topologies.KINDS["a100"].hbm_gib, abs=1e-3)


def test_flags_of_the_mode_are_accepted_and_start_no_accelerator():
    """An unknown XLA flag would abort the process."""
    code = (
        "from flowtok_jax.perf import topologies; topologies.prepare_environment();"
        "import jax;"
        "print(jax.jit(lambda x: x + 1)(1), jax.devices()[0].platform)"
    )
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["2", "cpu"], done.stderr
