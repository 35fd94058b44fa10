"""Base of the configs of the paper's text-to-image sizes.

The argument is the stage of training: 1 (DataComp-1B, CC12M, LAION-aesthetic), 2
(DataComp-1B filtered harder, LAION-art, LAION-pop, JourneyDB, DALLE3-1M) or 512 (as 2,
image tokens of the 512 px tokenizer). Each starts from the one before: set
--config.init_from to its workdir. Paper: 1M steps at batch 4096, 20.4 (XL) and 26.1 (H)
days on 8 A100; COCO FID-30K 10.06 (XL) and 9.67 (H) at scale 2, 20 steps.
"""

from ml_collections import ConfigDict

from configs import default
from flowtok_jax.models import dit
from flowtok_jax.runtime.errors import UserError

STAGES = {"1": "stage1", "2": "stage2", "512": "stage2_512"}


def make_config(size: str, stage: str) -> ConfigDict:
    """Returns the config of a size in models/dit.py at a stage of training."""
    if stage not in STAGES:
        raise UserError(
            f"stage is {stage!r}; expected one of {', '.join(STAGES)}, as in "
            f"--config=configs/{size}.py:1"
        )
    config = default.get_config()
    config.dit = ConfigDict(dit.SIZES[size])
    config.compute.remat = "dense"  # recomputes hardly anything; xl and h need more
    config.data.train = f"latents:data/{STAGES[stage]}/*.tar"
    if stage == "512":
        config.tokenizer.image_size = 512
    return config
