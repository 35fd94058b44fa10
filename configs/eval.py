"""Evaluation of any trained weights, with the sizes and options stored with them.

    python -m flowtok_jax.main --mode=eval --config=configs/eval.py \\
        --checkpoint=weights/xl --workdir=runs/xl \\
        --config.eval.protocol=coco_fid_30k --config.eval.samples=30000 \\
        --config.eval.captions=captions_val2014.json \\
        --config.eval.weights=weights/metrics --config.eval.fid.reference=coco.npz

docs/evaluation.md says where the files come from; the keys are in `eval` of
configs/default.py. Paper: COCO FID-30K 10.06 (XL) and 9.67 (H), MJHQ-30K 7.68 and 7.15,
at scale 2 and 20 steps; nobody has measured the released weights with this code yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the default config, with the weights' own sizes and options."""
    config = default.get_config()
    config.init_config = True
    return config
