"""FlowTok-H: text to image; stages 1, 2, 512 as in configs/t2i.py.

    python -m flowtok_jax.main --config=configs/h.py:1 --workdir=DIR

Paper: 26.1 days on 8 A100, at up to batch 8192; COCO FID-30K 9.67, 18.2 images/s
on one A100.
"""

from ml_collections import ConfigDict

from configs import t2i


def get_config(stage: str = "1") -> ConfigDict:
    """FlowTok-H at a stage of training."""
    return t2i.make_config("h", stage)
