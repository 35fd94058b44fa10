"""Which module an instruction belongs to, and how fast devices can be."""

import pytest

from flowtok_jax.perf.machine import peak_tflops
from flowtok_jax.perf.profile import module_of, modules_of

IN = "jit(text_to_image)/while/body/closed_call/DiT/while/body/closed_call/blocks"


@pytest.mark.parametrize(
    ("path", "module"),
    [
        (f"{IN}/attention/qkv/dot_general", ("dit", "attention")),
        (f"{IN}/mlp/fc1/dot_general", ("dit", "mlp")),
        (f"{IN}/modulation/dot_general", ("dit", "modulation")),
        (f"{IN}/_LayerNorm_0/LayerNorm_0/reduce_sum", ("dit", "rest")),
        ("jit(f)/DiT/modulation/TimeEmbedding/fc1/add", ("dit", "modulation")),
        ("jit(f)/DiT/time/fc1/dot_general", ("dit", "modulation")),
        (
            "jit(f)/DiT/while/body/jit(dynamic_index_in_dim)/dynamic_slice",
            ("dit", "weights"),
        ),
        ("jit(f)/ClipText/while/body/blocks/mlp/fc1/add", ("clip", "mlp")),
        ("jit(f)/TextProjector/while/body/blocks/fc2/add", ("projector", "mlp")),
        ("jit(f)/TextDecoder/embed/dot_general", ("text_decoder", "rest")),
        ("jit(f)/Tokenizer.decode/decoder/x/blocks/mlp/w12", ("decoder", "mlp")),
        ("jit(f)/Tokenizer.encode/encoder/patch_embed", ("encoder", "rest")),
        ("jit(f)/while/body/closed_call/add", ("sampler", "rest")),
    ],
)
def test_a_path_names_the_module(path, module):
    assert module_of(path) == module


def test_instructions_are_given_to_modules():
    """Loops are left out, because their time is that of what they hold."""
    hlo = """
%body.1 (arg: f32[4]) -> f32[4] {
  %fusion.2 = f32[4] fusion(%x), metadata={op_name="jit(f)/DiT/embed/add"}
  %fusion.4 = f32[4] fusion(%x), metadata={op_name="jit(f)/DiT/blocks/mlp/fc1"}
  %add.5 = f32[4] add(%x), metadata={op_name="jit(f)/while/body/add"}
  ROOT %copy.3 = f32[4] copy(%fusion.2)
}

ENTRY %main.9 (p: f32[4]) -> f32[4] {
  %while.1 = (s32[], f32[4]) while(%t), metadata={op_name="jit(f)/DiT/while"}
  ROOT %copy.8 = f32[4] copy(%x)
}
"""
    assert modules_of(hlo) == {
        "fusion.2": ("dit", "rest"),
        "fusion.4": ("dit", "mlp"),
        "add.5": ("sampler", "rest"),
        "copy.3": ("dit", "unnamed"),
        "copy.8": ("sampler", "unnamed"),
    }


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.5),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("cpu", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_devices_peak_is_that_of_its_kind(kind, peak):
    assert peak_tflops(kind) == peak
