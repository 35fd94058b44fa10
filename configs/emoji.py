"""Emoji from their names, and their names from emoji: the weights in assets/emoji.

    pip install 'flowtok_jax[emoji]'
    python examples/emoji/prepare.py --out=data/emoji --size=64
    python -m flowtok_jax.main --config=configs/emoji.py --workdir=runs/emoji
    python -m flowtok_jax.main --config=configs/emoji.py:students \\
        --workdir=runs/emoji_students

configs/own.py with its choices written down, and half of its steps of image to text
(docs/emoji.md). No caption has more than 16 tokens, so there are 16, of 32 channels:
the numbers of 32 of 16 at half the work.
`students` distils both flows of the weights that ship, as small adapters over them.
"""

from ml_collections import ConfigDict

from configs import default, distill, own
from flowtok_jax.models.sizes import SIZES

DATA = {
    "train": "folder:data/emoji/train",
    "eval": "folder:data/emoji/held_out",
    "held_out": 0.0,
}


def get_config(stage: str = "") -> ConfigDict:
    """Returns the config of the shipped emoji, of one of its stages, or of students."""
    if stage == "students":
        return _distil()
    config = own.get_config("small")
    config.own.size = ""  # nothing is chosen by looking at the data
    for section, sizes in SIZES["small"].items():
        config[section].update(sizes)
    config.data.update(DATA)
    config.latent.update({"tokens": 16, "channels": 32})
    config.clip.update({"vocab_size": 2048, "trained_along": False})
    config.compute.update({"dtype": "float32", "layout": "rows"})
    config.train.update({"batch_size": 64, "steps_per_call": 10})
    config.checkpoint.every = 500
    config.log.preview_every = 1000
    # A name has one picture: its mean draws that best, in few steps, little guided.
    config.sample.update({"source": "mean", "times": "left"})
    config.sample.update({"num_steps": 4, "scale": 1.3})
    config.eval.samples = 400  # all that is held out
    config.eval.retrieval.gallery = config.data.train
    config.per_stage = ConfigDict(
        {
            "tokenizer": {"train": {"num_steps": 3500, "batch_size": 32}},
            "text_tokenizer": {"train": {"num_steps": 1500}},
            "t2i": {"train": {"num_steps": 12_000}},
            "i2t": {"train": {"num_steps": 4500}},
        }
    )
    return default.only(config, stage)


def _distil() -> ConfigDict:
    """Returns the config of both students, each of 237 kB as float16."""
    config = distill.get_config("t2i,i2t")
    config.init_from = "runs/emoji"
    config.data.update(DATA)
    config.compute.update({"dtype": "float32", "layout": "rows", "remat": "none"})
    config.lora.update({"rank": 5, "alpha": 10.0, "pattern": "student/blocks/"})
    # The steps in which the teacher draws best; more lead away from held-out names.
    config.loss.t2i_distilled.trajectory_steps = 4
    config.init_changes.sample.num_steps = 2
    config.train.update({"num_steps": 3000, "batch_size": 8, "ema_decay": 0.99})
    config.train.steps_per_call = 10
    config.optimizer.name = "adamw"
    config.schedule.update({"lr": 2e-3, "warmup_steps": 40})
    config.log.preview_every = 0
    return config
