"""FlowTok-XL, image to text on COCO captions: the text tokenizer, then the flow.

    python -m flowtok_jax.main --config=configs/i2t.py --workdir=DIR
    python -m flowtok_jax.main --config=configs/i2t.py:text_tokenizer --workdir=DIR

Needs a trained image tokenizer and CLIP weights (--config.init_from). Paper, Karpathy
test split: BLEU-4 37.1, METEOR 27.8, ROUGE-L 57.6, CIDEr 117.0. The paper states
neither schedule nor batch for this direction; these are ours.
"""

from ml_collections import ConfigDict

from configs import default
from flowtok_jax.models import dit


def get_config(stage: str = "") -> ConfigDict:
    """Returns the config of both stages, or of one of them."""
    config = default.get_config()
    config.stages = ("text_tokenizer", "i2t")
    config.dit = ConfigDict(dit.SIZES["xl"])
    config.data.train = "tfds:coco_captions:train+restval"
    config.data.eval = "tfds:coco_captions:test"
    config.train.update({"batch_size": 1024, "num_steps": 100_000})
    config.per_stage = ConfigDict({"text_tokenizer": {"train": {"num_steps": 20_000}}})
    return default.only(config, stage)
