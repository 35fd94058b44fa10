"""FlowTok-H: text to image; stages 1, 2, 512 as in configs/t2i.py.

    python -m flowtok_jax.main --config=configs/h.py:1 --workdir=DIR

Paper: 26.1 days on 8 A100, at up to batch 8192; COCO FID-30K 9.67, 18.2 images/s
on one A100.

Parameters, their averages and moments (17 GB) and the batch are split over 8 devices.
The backward pass computes queries, keys and values again: of all dense layers they give
the most memory for the least work. At batch 8192 each of 8 A100 of 80 GB needs 68.6 GiB
and does 8 % of the work twice, as compiled by

    python -m flowtok_jax.main --mode=compile --config=configs/h.py --topology=a100:8 \\
        --config.train.batch_size=8192
"""

from ml_collections import ConfigDict

from configs import t2i


def get_config(stage: str = "1") -> ConfigDict:
    """Returns FlowTok-H's config at a stage of training."""
    config = t2i.make_config("h", stage)
    config.mesh.fsdp = 8
    config.compute.remat = "dense_but_qkv"
    return config
