"""Sizes of all networks together, for configs/own.py."""

from typing import Any

from flowtok_jax.models import dit, tokenizer

# What `own.size` sets. Steps: small was trained on emoji, the others are guesses that
# keep the proportions of the released networks.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "clip": {"width": 128, "depth": 3, "heads": 4},
        "tokenizer": {
            "image_size": 64,
            "patch": 8,
            "encoder": {"width": 192, "depth": 4, "heads": 4},
            "decoder": {"width": 192, "depth": 4, "heads": 4},
        },
        "projector": {"depth": 2, "heads": 4, "mlp_width": 256, "dropout": 0.0},
        "text_decoder": {"depth": 2, "heads": 4, "mlp_width": 256, "dropout": 0.0},
        "align_head": {"width": 128},
        "dit": {"width": 256, "depth": 4, "heads": 4},
        "schedule": {"lr": 3e-3},
    },
    "medium": {
        "clip": {"width": 256, "depth": 6, "heads": 8},
        "tokenizer": {
            "image_size": 128,
            "patch": 8,
            "encoder": {"width": 384, "depth": 8, "heads": 6},
            "decoder": {"width": 384, "depth": 8, "heads": 6},
        },
        "projector": {"depth": 4, "heads": 8, "mlp_width": 512, "dropout": 0.1},
        "text_decoder": {"depth": 4, "heads": 8, "mlp_width": 512, "dropout": 0.1},
        "align_head": {"width": 256},
        "dit": dit.SIZES["s"],
        "schedule": {"lr": 2e-3},
    },
    "large": {
        "clip": {"width": 512, "depth": 8, "heads": 8},
        "tokenizer": {
            "image_size": 256,
            "patch": 16,
            "encoder": tokenizer.SIZES["base"],
            "decoder": tokenizer.SIZES["base"],
        },
        "projector": {"depth": 6, "heads": 8, "mlp_width": 1024, "dropout": 0.1},
        "text_decoder": {"depth": 6, "heads": 8, "mlp_width": 1024, "dropout": 0.1},
        "align_head": {"width": 512},
        "dit": dit.SIZES["b"],
        "schedule": {"lr": 1e-3},
    },
}
