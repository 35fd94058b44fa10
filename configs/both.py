"""One group of networks for both directions: it draws and it describes.

    python -m flowtok_jax.main --config=configs/both.py:demo --workdir=runs/both
    python -m flowtok_jax.main --config=configs/both.py:emoji --workdir=runs/emoji_both
    python -m flowtok_jax.main --config=configs/both.py:b --config.init_from=WEIGHTS \\
        --workdir=DIR

In place of three stages (text tokenizer, text to image, image to text) there is one,
whose DiT has half the parameters of two (docs/both.md). A step takes each pair both
ways, and so does the work of a step of text to image and one of image to text.

The sizes of the paper, s, b, l, xl and h, take clip and tokenizer from init_from; where
that has text to image too, such as the authors' converted weights, they start from it.
The paper has no such model: their number of steps is that of its text to image, at half
the batch.
"""

from ml_collections import ConfigDict

from configs import b, demo, emoji, h, l, s, xl
from flowtok_jax.runtime.errors import UserError

BASES = {"demo": demo, "emoji": emoji, "s": s, "b": b, "l": l, "xl": xl, "h": h}
STEPS = {"demo": 3200, "emoji": 10_500}  # of both; rates as those of text to image


def get_config(base: str = "b") -> ConfigDict:
    """Returns the config of both directions in the sizes of another one."""
    if base not in BASES:
        raise UserError(
            f"base is {base!r}; expected one of {', '.join(BASES)}, as in "
            "--config=configs/both.py:demo"
        )
    config = BASES[base].get_config()
    # An image has several captions, and the flow back decides early (docs/both.md).
    config.caption.times = "early"
    if base not in STEPS:
        # Each pair goes through the DiT twice.
        config.stages = ("both",)
        config.train.batch_size = 2048
        return config
    config.loss.both.i2t_time_location = -2.0
    # Small enough to train all of it; the text tower is random.
    config.stages = ("tokenizer", "both")
    own = config.per_stage.t2i.copy_and_resolve_references()
    own.train.num_steps = STEPS[base]
    own.optimizer = ConfigDict({"name": "muon"})  # ahead of AdamW: docs/both.md
    config.per_stage.both = own
    return config
