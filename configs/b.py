"""FlowTok-B: text to image; stages 1, 2, 512 as in configs/t2i.py.

    python -m flowtok_jax.main --config=configs/b.py:1 --workdir=DIR

The size of the paper's ablations: COCO FID-30K 29.14 without guidance (Tab. 4).
"""

from ml_collections import ConfigDict

from configs import t2i


def get_config(stage: str = "1") -> ConfigDict:
    """Returns FlowTok-B's config at a stage of training."""
    return t2i.make_config("b", stage)
