"""FlowTok-XL: text to image; stages 1, 2, 512 as in configs/t2i.py.

    python -m flowtok_jax.main --config=configs/xl.py:1 --workdir=DIR

Paper: 20.4 days on 8 A100 at batch 4096; COCO FID-30K 10.06, 22.7 images/s on one A100.
"""

from ml_collections import ConfigDict

from configs import t2i


def get_config(stage: str = "1") -> ConfigDict:
    """FlowTok-XL at a stage of training."""
    return t2i.make_config("xl", stage)
