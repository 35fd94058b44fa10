"""Collectives read from HLO text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from flowtok_jax.perf import hlo
from flowtok_jax.runtime.mesh import make_mesh

GPU = """HloModule jit_step, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p.0: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p.0 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %w.0 = bf16[4,8]{1,0} get-tuple-element(%p.0), index=1
  %ag = (bf16[4,8]{1,0}, bf16[32,8]{1,0}) all-gather-start(%w.0), channel_id=1
  ROOT %agd = bf16[32,8]{1,0} all-gather-done(%ag)
}

%body (p.1: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %x.1 = f32[64]{0} fusion(%p.1), kind=kLoop, calls=%inner
  %rs = ((f32[64]{0}), f32[8]{0}) reduce-scatter-start(%x.1), channel_id=2
}

%condition (p.2: (s32[], bf16[4,8])) -> pred[] {
  %p.2 = (s32[], bf16[4,8]{1,0}) parameter(0)
}

ENTRY %main (x: f32[3]) -> f32[3] {
  %x = f32[3]{0} parameter(0)
  %loop = (s32[], bf16[4,8]{1,0}) while(%x), condition=%condition, body=%body, TRIPS
  %ar = f32[3]{0} all-reduce-start(%x), channel_id=3, to_apply=%add
  ROOT %ard = f32[3]{0} all-reduce-done(%ar)
}
"""

GPU = GPU.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"36"}}')

TPU = """HloModule jit_step, num_partitions=8

%all-reduce-scatter.1 (q: bf16[16,8]) -> bf16[2,8] {
  %q = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0)
  %r = bf16[16,8]{1,0:T(8,128)(2,1)} all-reduce(%q), channel_id=7, to_apply=%add
}

%start (q.1: bf16[2,8]) -> bf16[16,8] {
  %q.1 = bf16[2,8]{1,0} parameter(0)
  %g.1 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%q.1), channel_id=9
}

%done (q.2: bf16[2,8]) -> bf16[16,8] {
  %q.2 = bf16[2,8]{1,0} parameter(0)
  %g.2 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%q.2), channel_id=9
}

%body (p.1: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %p.1 = (s32[]{:T(128)}, bf16[2,8]{1,0}) parameter(0)
  %f.0 = bf16[2,8]{1,0} fusion(%p.1), kind=kCustom, calls=%all-reduce-scatter.1
  %f.1 = bf16[16,8]{1,0} fusion(%p.1), kind=kCustom, calls=%start
  %f.2 = bf16[16,8]{1,0} fusion(%p.1), kind=kCustom, calls=%done
}

%condition (p.2: (s32[], bf16[2,8])) -> pred[] {
  %c = s32[]{:T(128)} constant(5)
  %p.2 = (s32[]{:T(128)}, bf16[2,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

ENTRY %main (x: bf16[2,8]) -> bf16[2,8] {
  %x = bf16[2,8]{1,0} parameter(0)
  %loop = (s32[]{:T(128)}, bf16[2,8]{1,0}) while(%x), condition=%condition, body=%body
  ROOT %cp = (bf16[2,8]{1,0}, bf16[2,8]{1,0}, u32[]) collective-permute-start(%x)
}
"""


def test_loops_count_as_often_as_they_run_and_starts_once():
    assert hlo.count(GPU) == {
        "all-gather": {"count": 36, "bytes": 36 * 32 * 8 * 2},
        "all-reduce": {"count": 1, "bytes": 3 * 4},
        "reduce-scatter": {"count": 36, "bytes": 36 * 64 * 4},
    }


def test_libtpus_forms_are_known():
    """Trips from the condition, reduce-scatter as a fusion, overlap by channel."""
    assert hlo.count(TPU) == {
        "all-gather": {"count": 5, "bytes": 5 * 16 * 8 * 2},
        "collective-permute": {"count": 1, "bytes": 2 * 8 * 2},
        "reduce-scatter": {"count": 5, "bytes": 5 * 16 * 8 * 2},
    }


def test_a_loop_of_unknown_length_counts_once():
    text = GPU.replace('{"known_trip_count":{"n":"36"}}', "{}")
    assert hlo.count(text)["all-gather"]["count"] == 1


@pytest.mark.parametrize(
    ("kind", "size"), [("pred", 1), ("bf16", 2), ("f32", 4), ("s4", 0.5), ("f8e5m2", 1)]
)
def test_bytes_of_kinds(kind, size):
    text = GPU.replace("f32[3]", f"{kind}[16]")
    assert hlo.count(text)["all-reduce"]["bytes"] == 16 * size


def test_a_real_program_gathers_a_split_matrix_in_every_turn_of_its_loop():
    mesh = make_mesh(data=1, fsdp=8, tensor=1)
    split, rows = (
        jax.NamedSharding(mesh, PartitionSpec(*axes))
        for axes in ((None, "fsdp"), (("data", "fsdp"),))
    )

    def apply(matrices, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, matrices)[0]

    shapes = np.zeros((5, 16, 16), np.float32), np.zeros((8, 16), np.float32)
    jitted = jax.jit(apply, in_shardings=(split, rows), out_shardings=rows)
    found = hlo.count(jitted.lower(*shapes).compile().as_text())
    assert found == {"all-gather": {"count": 5, "bytes": 5 * 16 * 16 * 4}}
