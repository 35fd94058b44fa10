"""Few steps: distils a trained flow into one of 1 to 8 calls, guidance inside.

    python -m flowtok_jax.main --config=configs/distill.py --checkpoint=runs/demo \\
        --config.data.train=shapes --workdir=runs/fast
    python -m flowtok_jax.main --mode=sample --checkpoint=runs/fast --prompts="..."

--checkpoint names trained weights with a t2i group, or with configs/distill.py:i2t an
i2t group, or with configs/distill.py:t2i,i2t both; sizes come from there. The student
starts as a copy of that flow, and learns its guided average velocities
(docs/few_steps.md). The guidance is the one that the weights are sampled with, unless
--config.loss.t2i_distilled.scale says another. The weights of the run sample with
solver=average and 4 steps by themselves.
"""

from ml_collections import ConfigDict

from configs import default
from flowtok_jax.flow.samplers import AVERAGE
from flowtok_jax.runtime.errors import UserError

FLOWS = {"t2i": "sample", "i2t": "caption"}


def get_config(flow: str = "t2i") -> ConfigDict:
    """Returns the config that distils one direction, or both one after the other."""
    flows = flow.split(",")
    if unknown := [name for name in flows if name not in FLOWS]:
        raise UserError(
            f"flow is {unknown[0]!r}; expected one of {', '.join(FLOWS)}, as in "
            "--config=configs/distill.py:i2t, or t2i,i2t for both"
        )
    config = default.from_trained("t2i_distilled")
    config.stages = tuple(f"{name}_distilled" for name in flows)
    few = {"solver": AVERAGE, "num_steps": 4}
    config.init_changes = ConfigDict({FLOWS[name]: dict(few) for name in flows})
    # Of each caption or image the student learns `pairs` rows, 256 together.
    config.train.update({"num_steps": 20_000, "batch_size": 32})
    config.schedule.update({"lr": 5e-4, "schedule": "cosine"})
    config.optimizer.update({"name": "muon", "weight_decay": 0.0})
    config.log.preview_every = 500
    return config
