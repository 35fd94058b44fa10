"""The table of tasks, and the groups of parameters that follow from it."""

import jax
import jax.numpy as jnp
import pytest
from clu.parameter_overview import count_parameters

from configs import default
from flowtok_jax.models.dit import SIZES
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import TASKS, abstract_group, find_task, networks_of
from tests import tiny
from tests.tasks.setting import OPTIONS, batch, setting

# DiT, projector and align head; millions, as of the release (fixed positions counted).
PARAMETERS = {"s": 56.8, "b": 153.9, "l": 481.2, "xl": 698.1, "h": 1092.1}


@pytest.mark.parametrize("size", SIZES)
def test_parameter_count_of_text_to_image(size):
    nets = tiny.nets(
        latent=dict(tokens=77, channels=16),
        clip=dict(width=768),
        projector=dict(depth=6, heads=8, mlp_width=1024),
        align_head=dict(width=512),
        dit=SIZES[size],
    )
    count = count_parameters(abstract_group(nets, "t2i"))
    assert round((count + 77 * nets.dit.width) / 1e6, 1) == PARAMETERS[size]


@pytest.mark.parametrize("group", ["clip", *TASKS])
def test_a_group_holds_its_networks_in_float32(group):
    nets = tiny.nets(compute=dict(dtype="bfloat16"))
    params = abstract_group(nets, group)
    assert sorted(params) == sorted(networks_of(group, tiny.nets()))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_task_stands_under_its_name_and_needs_groups_that_there_are():
    for name, task in TASKS.items():
        assert find_task(name) is task
        assert task.name == name
        for group in task.frozen.values():
            assert networks_of(group, tiny.nets())


@pytest.mark.parametrize("name", [name for name in TASKS if name != "tokenizer"])
def test_batches_have_images_where_the_loss_reads_them(name):
    state, frozen, step = setting(name)
    alone = {"caption_ids": batch()["caption_ids"]}
    if TASKS[name].reads_contents(OPTIONS[name].to_dict()):
        with pytest.raises(KeyError, match="image"):
            jax.eval_shape(step, state, frozen, alone)
        return
    with_images = jax.eval_shape(step, state, frozen, batch())
    assert jax.eval_shape(step, state, frozen, alone) == with_images


@pytest.mark.parametrize("way", ["t2i", "i2t"])
def test_a_student_reads_images_of_a_path_that_begins_or_ends_there(way):
    reads = TASKS[f"{way}_distilled"].reads_contents
    assert reads({"trajectory_steps": 0})
    assert reads({"trajectory_steps": 8}) == (way == "i2t")


def test_only_images_that_are_read_are_encoded():
    config = default.get_config()
    found = {name for name, task in TASKS.items() if task.encodes_images(config)}
    assert found == {"t2i", "i2t", "both", "i2t_distilled"}
    config.loss.t2i_distilled.update({"method": "jvp", "trajectory_steps": 0})
    assert TASKS["t2i_distilled"].encodes_images(config)


def test_what_is_in_no_table_is_refused_with_the_choices():
    with pytest.raises(UserError, match="stages has 'draw'; expected some of .*t2i"):
        find_task("draw")
    with pytest.raises(UserError, match="no group 'draw'; known are clip, "):
        networks_of("draw", tiny.nets())
