from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.train import sharding


def test_the_rest_of_the_devices_goes_to_the_open_axis():
    mesh = make_mesh(data=-1, fsdp=2, tensor=1)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 8)])
def test_an_impossible_mesh_is_refused_with_the_choices(sizes):
    data, fsdp, tensor = sizes
    with pytest.raises(UserError, match=r"8 devices.*\[1, 2, 4, 8\]"):
        make_mesh(data=data, fsdp=fsdp, tensor=tensor)


def test_kernels_are_split_by_rule_and_the_rest_is_whole():
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    tree = {
        "blocks": {"attention": {"qkv": {"kernel": jnp.zeros((3, 8, 24))}}},
        "norm": {"scale": jnp.zeros(8)},
        "fc1": {"kernel": jnp.zeros((7, 6))},
    }
    places = jax.tree.map(lambda s: s.spec, sharding.shardings(mesh, tree))
    qkv = places["blocks"]["attention"]["qkv"]["kernel"]
    assert qkv == PartitionSpec(None, "fsdp", "tensor")
    assert places["norm"]["scale"] == PartitionSpec()
    assert places["fc1"]["kernel"] == PartitionSpec(None, "tensor")  # 7 % 4


def device(number: int, slice_index: int) -> jax.Device:
    """One of a slice, as `make_mesh` sees it."""
    made = mock.NonCallableMagicMock(spec=jax.devices()[0])
    made.configure_mock(id=number, slice_index=slice_index, device_kind="cpu")
    made.configure_mock(platform="cpu", process_index=slice_index)
    return made


def test_copies_of_the_parameters_go_over_slices_and_parts_stay_within():
    devices = [device(i, i // 4) for i in range(8)]
    mesh = make_mesh(data=2, fsdp=4, tensor=1, devices=devices)
    slices = [[d.slice_index for d in row.flat] for row in mesh.devices]
    assert slices == [[0] * 4, [1] * 4]
    mesh = make_mesh(data=1, fsdp=8, tensor=1, devices=devices)
    assert len({d.id for d in mesh.devices.flat}) == 8
