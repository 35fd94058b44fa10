"""Image tokenizer: 256 px (default) or 512 px to 77 tokens of 16 channels.

    python -m flowtok_jax.main --config=configs/tokenizer.py:256 --workdir=DIR

The recipe is TA-TiTok's, as FlowTok's own training code is not public: 650k steps over
685.8M images of DataComp, hence batch 1056. Without TA-TiTok's perceptual and
adversarial terms expect blurrier images than the paper's rFID 1.02 (ImageNet val).
"""

from ml_collections import ConfigDict

from configs import default
from flowtok_jax.runtime.errors import UserError

SIZES = {"256": 256, "512": 512}


def get_config(image_size: str = "256") -> ConfigDict:
    """Returns the tokenizer's config at an image size in pixels."""
    if image_size not in SIZES:
        raise UserError(
            f"image size is {image_size!r}; expected one of {', '.join(SIZES)}"
        )
    config = default.get_config()
    config.stages = ("tokenizer",)
    config.tokenizer.image_size = SIZES[image_size]
    config.data.train = "tars:data/datacomp/*.tar"
    config.data.eval = "tars:data/imagenet_val/*.tar"
    config.train.update({"num_steps": 650_000, "batch_size": 1056})
    config.train.ema_decay = 0.999
    config.schedule.update({"lr": 1e-4, "lr_end": 1e-5, "schedule": "cosine"})
    config.schedule.warmup_steps = 10_000
    config.optimizer.update({"betas": (0.9, 0.999), "weight_decay": 1e-4})
    config.optimizer.clip_norm = 1.0
    return config
