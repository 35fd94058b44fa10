"""Fine-tuning on your own captioned images: text to image, or image to text.

    python -m flowtok_jax.main --config=configs/finetune.py --checkpoint=weights/xl \\
        --config.data.train=folder:photos --workdir=runs/mine
    python -m flowtok_jax.main --mode=sample --checkpoint=runs/mine --prompts="..."

--checkpoint names trained weights: a run's workdir (runs/demo) or a directory of
pretrained weights. Sizes, losses and options of sampling are those stored with them.
configs/finetune.py:i2t trains image to text instead, from weights that hold its text
tokenizer, and configs/finetune.py:both a group of both directions (configs/both.py),
from one or from text to image. Batch, rate and number of steps suit a few thousand
images on one accelerator; they are guesses to start from, as neither paper nor release
fine-tunes.
Captions in words that the weights lack are refused; --config.init_vocabulary=captions
takes a vocabulary made of them, for i2t with --config.stages=text_tokenizer,i2t.
configs/finetune.py:lora and :lora_i2t train adapters over a direction's flow instead,
on a few images of one style or thing, and :lora_both over both at once: docs/lora.md.
TensorBoard (runs/mine/tb) shows sample grids every 250 steps. Encoding the images once,
by --mode=pretokenize with this config, makes steps faster.
"""

from ml_collections import ConfigDict

from configs import default
from flowtok_jax.runtime.errors import UserError

# Variant -> its stage, and whether it trains adapters.
VARIANTS = {
    "t2i": ("t2i", False),
    "i2t": ("i2t", False),
    "both": ("both", False),
    "lora": ("t2i", True),
    "lora_i2t": ("i2t", True),
    "lora_both": ("both", True),
}


def get_config(variant: str = "t2i") -> ConfigDict:
    """Returns the config that fine-tunes one direction, or both."""
    if variant not in VARIANTS:
        raise UserError(
            f"stage is {variant!r}; expected one of {', '.join(VARIANTS)}, as in "
            "--config=configs/finetune.py:i2t"
        )
    stage, has_adapters = VARIANTS[variant]
    config = default.from_trained(stage)
    config.train.update({"num_steps": 4000, "batch_size": 64, "ema_decay": 0.999})
    config.schedule.lr = 2e-5
    # The release's KL at its batch of 4096, as a mean: a small batch must not weaken
    # the term that holds the source in place. A workdir's own loss replaces this one.
    config.loss.t2i.update({"kl": "release_element_mean"})
    config.loss.t2i.kl_weight = 0.01 * 4096 * 77 * 16
    # New words have rows that were never trained; the rate is that of training from
    # nothing.
    config.per_stage = ConfigDict({"text_tokenizer": {"schedule": {"lr": 4e-4}}})
    config.log.preview_every = 250
    return _with_adapters(config) if has_adapters else config


def _with_adapters(config: ConfigDict) -> ConfigDict:
    """Trains adapters of the flow on a few images, whose captions share a word."""
    config.lora.update({"rank": 4, "alpha": 8.0, "pattern": "dit/blocks/"})
    config.train.update({"num_steps": 1000, "batch_size": 32, "ema_decay": 0.98})
    # A hundredth of the parameters, which begin at 0: they need and bear a larger rate.
    config.schedule.update({"lr": 2e-3, "warmup_steps": 20, "schedule": "cosine"})
    config.optimizer.weight_decay = 0.0
    config.checkpoint.every = 250
    return config
