"""Fine-tuning on your own captioned images: text to image, or image to text.

    python -m flowtok_jax.main --config=configs/finetune.py --checkpoint=weights/xl \\
        --config.data.train=folder:photos --workdir=runs/mine
    python -m flowtok_jax.main --mode=sample --checkpoint=runs/mine --prompts="..."

--checkpoint names trained weights: a run's workdir (runs/demo) or a directory of
pretrained weights. Sizes, losses and options of sampling are those stored with them.
configs/finetune.py:i2t trains image to text instead, from weights that hold its text
tokenizer. Batch, rate and number of steps suit a few thousand images on one
accelerator; they are guesses to start from, as neither paper nor release fine-tunes.
Captions in words that the weights lack are refused; --config.init_vocabulary=captions
takes a vocabulary made of them, for i2t with --config.stages=text_tokenizer,i2t.
TensorBoard (runs/mine/tb) shows sample grids every 250 steps. Encoding the images once,
by --mode=pretokenize with this config, makes steps faster.
"""

from ml_collections import ConfigDict

from configs import default
from flowtok_jax.runtime.errors import UserError

STAGES = ("t2i", "i2t")


def get_config(stage: str = "t2i") -> ConfigDict:
    """Returns the config that fine-tunes one direction."""
    if stage not in STAGES:
        raise UserError(
            f"stage is {stage!r}; expected one of {', '.join(STAGES)}, as in "
            "--config=configs/finetune.py:i2t"
        )
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
    return config
