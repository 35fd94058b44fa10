"""Image tokenizer: 77 tokens of 16 channels for images of 256 px (default) or 512 px.

    python -m flowtok_jax.main --config=configs/tokenizer.py:256 --workdir=DIR
    python -m flowtok_jax.main --config=configs/tokenizer.py:512 --workdir=DIR
    python -m flowtok_jax.main --config=configs/tokenizer.py:256_detok --workdir=DIR
    python -m flowtok_jax.main --config=configs/tokenizer.py:decoder \\
        --checkpoint=DIR --workdir=DIR2

The recipe is TA-TiTok's, read off its release, as FlowTok's own training code is not
public: pixels, LPIPS and ConvNeXt, and a discriminator from step 200k of 650k on, over
685.8M images of DataComp, hence batch 1056. The judges' weights come from a directory
that the converter writes once:

    python -m flowtok_jax.convert --lpips=vgg16-397923af.pth,vgg.pth \\
        --convnext=convnext_small-0c510722.pth \\
        --inception=pt_inception-2015-12-05-6726825d.pth --out=weights/metrics

`256_detok` learns from disturbed tokens and hidden patches as well (l-DeTok), which is
to make tokens that flows learn more easily; `decoder` then tunes the decoder of these
weights alone, without either. The paper's rFID of 1.02 (ImageNet val) is by `256`.
"""

from ml_collections import ConfigDict

from configs import default
from flowtok_jax.runtime.errors import UserError

VARIANTS = ("256", "512", "256_detok", "decoder")


def get_config(variant: str = "256") -> ConfigDict:
    """Returns the tokenizer's config of a variant."""
    if variant not in VARIANTS:
        raise UserError(
            f"variant is {variant!r}; expected one of {', '.join(VARIANTS)}"
        )
    config = default.get_config()
    config.stages = ("tokenizer",)
    config.tokenizer.image_size = 512 if variant == "512" else 256
    _add_recipe(config)
    loss = config.loss.tokenizer
    if variant == "256_detok":
        loss.update({"noise": 3.0, "hidden": (-0.1, 0.7)})
    if variant == "decoder":
        loss.trains = "decoder"
        config.train.num_steps = 100_000
        loss.gan.start = 20_000  # the decoder draws well already
    return config


def _add_recipe(config: ConfigDict) -> None:
    """Adds what all variants share."""
    config.data.train = "tars:data/datacomp/*.tar"
    config.data.eval = "tars:data/imagenet_val/*.tar"
    config.data.transform.update({"crop": "random", "flip": True})
    config.train.update({"num_steps": 650_000, "batch_size": 1056})
    config.train.update({"ema_decay": 0.999, "ema_warms_up": True})
    config.schedule.update({"lr": 1e-4, "lr_end": 1e-5, "schedule": "cosine"})
    config.schedule.warmup_steps = 10_000
    config.optimizer.update({"betas": (0.9, 0.999), "weight_decay": 1e-4})
    config.optimizer.update({"clip_norm": 1.0, "decayed": "kernels"})
    loss = config.loss.tokenizer
    loss.caption_dropout = 0.0  # captions always guide the release's decoder
    loss.judges.update({"lpips_weight": 1.0, "convnext_weight": 0.1})
    loss.gan.weight = 0.1
    config.eval.weights = "weights/metrics"
    config.log.update({"preview_fid": True, "preview_lpips": True})
