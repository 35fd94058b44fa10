"""FlowTok-XL: text to image; stages 1, 2, 512 as in configs/t2i.py.

    python -m flowtok_jax.main --config=configs/xl.py:1 --workdir=DIR

Paper: 20.4 days on 8 A100 at batch 4096; COCO FID-30K 10.06, 22.7 images/s on one A100.

Parameters, their averages and moments (11 GB) and the batch are split over 8 devices
(16 divide the width 1152 too, 256 do not). The backward pass computes queries, keys and
values again, as in configs/h.py. At batch 4096 each of 16 TPU v5e needs 15.7 of its
15.75 GiB, as compiled by

    python -m flowtok_jax.main --mode=compile --config=configs/xl.py --topology=v5e:4x4
"""

from ml_collections import ConfigDict

from configs import t2i


def get_config(stage: str = "1") -> ConfigDict:
    """Returns FlowTok-XL's config at a stage of training."""
    config = t2i.make_config("xl", stage)
    config.mesh.fsdp = 8
    config.compute.remat = "dense_but_qkv"
    return config
