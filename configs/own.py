"""From a folder of your own captioned pictures to a model, by one command.

    python -m flowtok_jax.main --config=configs/own.py \\
        --config.data.train=folder:photos --workdir=runs/photos
    python -m flowtok_jax.main --config=configs/own.py:small \\
        --config.data.train=folder:photos --minutes=60

Trains tokenizer, text tokenizer, text to image and image to text from nothing. First
it looks at the data, and says in a dozen lines what is there, which sizes and steps it
chose (modes/survey.py) and how long they take. `small` is for two CPU cores and 64 px,
`medium` for one accelerator and 128 px, `large` for several and 256 px; without a name
the device and the number of pictures decide. --minutes divides a time over the stages.
A key given on the command line is never chosen otherwise. One picture in 50, of few
pictures more, is held out of training, and the numbers at the end are of these.

The text tower is CLIP's where --checkpoint names weights that hold one, as
`python -m flowtok_jax.convert --clip=openai/clip-vit-large-patch14-336` writes them.
Otherwise it has CLIP's architecture: both tokenizers read captions by one at random,
and text to image trains one of its own along.
"""

from ml_collections import ConfigDict

from configs import default
from flowtok_jax.models.sizes import SIZES
from flowtok_jax.modes.survey import AUTO
from flowtok_jax.runtime.errors import UserError


def get_config(size: str = AUTO) -> ConfigDict:
    """Returns the config that fits itself to the data."""
    if size not in (AUTO, *SIZES):
        raise UserError(
            f"size is {size!r}; expected one of {', '.join((AUTO, *SIZES))}, as in "
            "--config=configs/own.py:small"
        )
    config = default.get_config()
    config.stages = ("tokenizer", "text_tokenizer", "t2i", "i2t")
    config.own.size = size
    config.init_trained = False  # of --checkpoint the text tower alone is used
    config.data.held_out = 0.02
    config.data.update({"threads": 4, "encode_first": True})
    config.text.update({"weights": "random", "vocabulary": "captions"})
    config.text.vocabulary_captions = 100_000
    config.clip.update({"embedding_std": 1.0, "trained_along": True})
    config.tokenizer.update({"token_std": 0.5, "kernel_std": 0.1, "latent_scale": 0.5})
    config.compute.remat = "none"
    config.train.update({"ema_decay": 0.999, "ema_warms_up": True})
    config.schedule.update({"warmup_steps": 100, "schedule": "cosine"})
    # Reaches in half the steps what AdamW does, see docs/training.md.
    config.optimizer.update({"name": "muon", "clip_norm": 1.0})
    config.checkpoint.every = 200
    config.log.update({"every": 50, "preview_every": 500, "preview_samples": 16})
    config.sample.batch_size = config.caption.batch_size = 64
    config.caption.update({"scale": 1.5, "candidates": 8, "times": "early"})
    config.eval.update({"after_training": True, "samples": 256})
    # As in configs/demo.py, whose comments say why.
    config.loss.tokenizer.kl_weight = 1e-7
    config.loss.t2i.update({"kl": "release_element_mean", "kl_weight": 0.5})
    config.loss.t2i.time_location = -1.0
    # An image has several captions, among which the flow back decides early: on emoji
    # and scenes ahead of -1 by Muon, and not by AdamW (docs/captions.md).
    config.loss.i2t.time_location = -2.0
    config.loss.i2t.text_scale = 0.35
    config.per_stage = ConfigDict(
        {stage: {"train": {"num_steps": 0}} for stage in config.stages}
    )
    return config
