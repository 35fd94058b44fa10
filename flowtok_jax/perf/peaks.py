"""Peak rates of devices: dense bfloat16 matrix products, without structured sparsity.

The first pattern found in a device's kind, as JAX names it, counts. Sources, as of
2025: TPU, per chip, cloud.google.com/tpu/docs (pages v4, v5e, v5p, v6e); NVIDIA, the
products' data sheets, whose rates with sparsity are halved here.
"""

import re

TFLOPS_BF16 = (
    (r"^TPU v4$", 275.0),
    (r"^TPU v5 ?(lite|e)", 197.0),
    (r"^TPU v5p?$", 459.0),
    (r"^TPU v6 ?(lite|e)", 918.0),
    (r"\bA100\b", 312.0),
    (r"\bH100 NVL", 835.5),
    (r"\bH100 PCIe", 756.0),
    (r"\bH100\b", 989.5),  # SXM
    (r"\bGH200\b", 989.5),
    (r"\bH200 NVL", 835.5),
    (r"\bH200\b", 989.5),
    (r"\bB200\b", 2250.0),
    (r"\bA10G\b", 70.0),
    (r"\bA10\b", 125.0),
    (r"\bL40S\b", 362.0),
    (r"\bL4\b", 121.0),
)


def peak_tflops(device_kind: str) -> float | None:
    """Of one device; None for a CPU, or another device that the table lacks."""
    for pattern, tflops in TFLOPS_BF16:
        if re.search(pattern, device_kind):
            return tflops
    return None
