"""FlowTok-S: text to image; stages 1, 2, 512 as in configs/t2i.py.

    python -m flowtok_jax.main --config=configs/s.py:1 --workdir=DIR

The paper publishes no numbers at this size.
"""

from ml_collections import ConfigDict

from configs import t2i


def get_config(stage: str = "1") -> ConfigDict:
    """Returns FlowTok-S's config at a stage of training."""
    return t2i.make_config("s", stage)
