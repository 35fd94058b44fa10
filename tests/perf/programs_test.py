"""`--mode=compile`: with the eight CPU devices in place of described ones."""

import json
import os
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest

from flowtok_jax.models.build import make_nets
from flowtok_jax.modes import compile as compile_mode
from flowtok_jax.perf import programs, topologies
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import TASKS, abstract_group
from flowtok_jax.train import loop
from tests import run

FIELDS = [
    *("topology", "devices", "device_kind", "stage", "step", "global_batch"),
    *("argument_gib", "temp_gib", "total_gib", "model_tflops_per_step"),
    *("recompute_fraction", "collectives", "compile_seconds", "hbm_gib", "fits"),
    *("remat", "mesh"),
]
GIB = 2**30


def config(stage="t2i", **changes):
    """The demo's config with wide enough layers, for one stage."""
    demo = runpy.run_path(run.CONFIG)["get_config"]()
    demo.update_from_flattened_dict({"sample.num_steps": 2, "caption.num_steps": 2})
    demo = for_stage(demo, stage)
    demo.update_from_flattened_dict(changes)
    return demo


def measure(config, devices, stage="t2i", step="train"):
    return programs.measure_program(config, stage, step, devices)


@pytest.mark.parametrize(
    ("direction", "groups"),
    [
        (None, {"both", "clip", "tokenizer"}),
        ("text_to_image", {"both", "clip", "tokenizer"}),
        ("image_to_text", {"both", "tokenizer"}),
    ],
)
def test_either_direction_of_both_is_planned_with_its_group(direction, groups):
    found = programs.plan_sample_step(
        config("both"), "both", jax.devices()[:1], direction
    )
    assert set(found.arguments[0]) == groups
    is_text = found.arguments[1].ndim == 2
    assert is_text == (direction != "image_to_text")
    jax.eval_shape(found.program, *found.arguments)  # parameters are those it takes


@pytest.fixture(scope="module")
def split():
    return measure(config(**{"mesh.fsdp": 8, "mesh.data": 1}), jax.devices())


@pytest.fixture(scope="module")
def alone():
    return measure(config(), jax.devices()[:1])


def size(tree) -> float:
    """GiB of one device's part of arrays that know their shardings; keys are small."""
    is_key = jax.dtypes.prng_key
    return sum(
        np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize / GIB
        for x in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(x.dtype, is_key)
    )


def test_a_split_state_moves_its_parameters_and_one_device_moves_nothing(split, alone):
    """Without pinned rows there would be all-to-all and permutes of activations."""
    assert alone["collectives"] == {}
    assert set(split["collectives"]) == {"all-gather", "all-reduce"}
    nets = make_nets(config())
    trained = abstract_group(nets, "t2i")
    kernels = sum(x.size for x in jax.tree.leaves(trained) if x.ndim > 1) * 4
    # every kernel is gathered once, blocks' once more for the backward pass
    gathered = split["collectives"]["all-gather"]["bytes"]
    assert 0.8 * kernels < gathered < 4 * kernels


def test_arguments_are_the_parts_of_the_state_that_a_device_holds(split, alone):
    for result, mesh, devices in (
        (split, {"mesh.fsdp": 8, "mesh.data": 1}, jax.devices()),
        (alone, {}, jax.devices()[:1]),
    ):
        made = config(**mesh)
        nets = make_nets(made)
        frozen = {g: abstract_group(nets, g) for g in TASKS["t2i"].frozen}
        planned = loop.plan_program(made, TASKS["t2i"], nets, frozen, devices)
        encoder = planned.frozen["tokenizer"]["tokenizer"]["encoder"]
        rows = made.train.batch_size // len(devices) * (32 * 32 * 3 + 16 * 4) / GIB
        used = size((planned.abstract, planned.frozen["clip"], encoder)) + rows
        assert result["argument_gib"] == pytest.approx(used, rel=0.02)
        assert result["total_gib"] > result["argument_gib"] + result["temp_gib"] - 3e-4
    assert split["argument_gib"] < 0.3 * alone["argument_gib"]


def test_the_work_is_that_of_the_batch_whatever_the_devices(split, alone):
    assert split["model_tflops_per_step"] == alone["model_tflops_per_step"] > 0
    assert split["global_batch"] == alone["global_batch"] == 64
    assert (split["devices"], alone["devices"]) == (8, 1)
    assert split["recompute_fraction"] == 0


def test_remat_takes_memory_for_work(alone):
    full = measure(config(**{"compute.remat": "full"}), jax.devices()[:1])
    assert full["temp_gib"] < 0.9 * alone["temp_gib"]
    assert 0.2 < full["recompute_fraction"] < 1 / 3


def test_stored_moments_leave_the_tokenizer_out(alone):
    moments = measure(config(**{"data.train": "latents:x"}), jax.devices()[:1])
    encoder = abstract_group(make_nets(config()), "tokenizer")["tokenizer"]["encoder"]
    saved = 4 * sum(x.size for x in jax.tree.leaves(encoder)) / GIB
    images = 64 * (32 * 32 * 3 - 16 * 32 * 2) / GIB
    got = alone["argument_gib"] - moments["argument_gib"]
    assert got == pytest.approx(saved + images, abs=2e-4)
    assert moments["model_tflops_per_step"] < alone["model_tflops_per_step"]


@pytest.mark.parametrize("stage", ["t2i", "i2t"])
def test_sampling_is_compiled_in_both_directions(stage):
    result = measure(config(stage), jax.devices(), stage, "sample")
    assert result["global_batch"] == 128
    assert result["model_tflops_per_step"] > 0
    assert result["recompute_fraction"] == 0


def test_a_batch_that_does_not_divide_is_refused():
    devices = jax.devices()
    with pytest.raises(UserError, match="sample.batch_size is 12; expected a multiple"):
        measure(config(**{"sample.batch_size": 12}), devices, step="sample")
    with pytest.raises(UserError, match="train.batch_size is 12; expected a multiple"):
        measure(config(**{"train.batch_size": 12}), devices)


def test_a_program_that_is_refused_for_its_size_does_not_fit(monkeypatch, split):
    class Refused:
        def lower(self, *arguments):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used "
                "20.06G of 15.75G hbm. Exceeded hbm capacity by 4.31G."
            )

    step = programs.plan_train_step(config(), "t2i", jax.devices())
    monkeypatch.setitem(
        programs.PLANS, "train", lambda *_: step._replace(program=Refused())
    )
    result = measure(config(), jax.devices())
    assert result["total_gib"] == 20.06
    assert result["collectives"] is None
    assert result["model_tflops_per_step"] == split["model_tflops_per_step"]


@pytest.mark.parametrize(
    ("stages", "chosen"),
    [
        (("tokenizer",), "tokenizer"),
        (("tokenizer", "text_tokenizer", "t2i", "i2t"), "t2i"),
        (("text_tokenizer", "i2t"), "i2t"),
    ],
)
def test_of_several_stages_the_main_or_the_last_is_taken(stages, chosen):
    made = config()
    made.stages = stages
    assert programs.choose_stage(made) == chosen


@pytest.fixture
def pretended(monkeypatch):
    """The mode with CPU devices where a topology is named; no environment is set."""
    monkeypatch.setattr(topologies, "prepare_environment", lambda: None)
    monkeypatch.setattr(topologies, "devices", lambda name: jax.devices())


def test_the_last_line_is_one_json_object_and_nothing_is_written(
    cli, pretended, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    mode = ["--mode=compile", "--topology=a100:8", "--config.mesh.fsdp=4"]
    outcome = cli(f"--config={run.CONFIG}", *mode, *run.flags())
    assert outcome.status == 0, outcome.stderr
    result = json.loads(outcome.stdout.splitlines()[-1])
    assert list(result) == FIELDS
    assert result["fits"] is True
    assert result["topology"] == "a100:8"
    assert result["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    assert result["stage"] == "t2i"
    assert result["hbm_gib"] == 79.15
    text = outcome.stderr
    assert "fits" in text
    assert "all-gather" in text
    assert max(map(len, text.splitlines())) <= 80
    assert not list(tmp_path.iterdir())


def test_a_program_larger_than_the_device_does_not_fit(pretended, monkeypatch):
    small = topologies.KINDS["a100"]._replace(hbm_gib=0.001)
    monkeypatch.setitem(topologies.KINDS, "a100", small)
    result = compile_mode.report(config(), "a100:8", "train")
    assert result["fits"] is False
    assert any("DOES NOT FIT" in line for line in compile_mode.report_lines(result))


def test_mistakes_end_in_one_line(cli):
    mode = ["--mode=compile", f"--config={run.CONFIG}"]
    assert "expected KIND:SIZES" in cli(*mode, "--topology=v9:2x2").complaint
    assert "topology is ''" in cli(*mode).complaint
    assert "no config named" in cli("--mode=compile").complaint


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "a100:4"])
@pytest.mark.parametrize("step", compile_mode.STEPS)
def test_the_demo_compiles_for_hardware_that_is_not_there(topology, step):
    platform = topologies.KINDS[topologies.parse_topology(topology)[0]].platform
    try:
        topologies.need(platform)
    except UserError as error:
        pytest.skip(str(error))
    environment = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    command = ["--mode=compile", f"--topology={topology}", f"--step={step}"]
    command += [f"--config={run.CONFIG}", "--config.mesh.fsdp=4"]
    done = subprocess.run(
        [sys.executable, "-m", "flowtok_jax.main", *command],
        cwd=run.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert list(result) == FIELDS
    assert result["devices"] == 4
    assert result["fits"] is True
    assert result["collectives"]["all-gather"]["count"] > 0
