"""Makes clip_tiny.npz and its manifest: what transformers' CLIPModel computes.

    PYTHONPATH=. python tests/goldens/make_clip.py      # needs torch and transformers

Weights follow the rule of the other goldens. Tests never run this file.
"""

import json

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tests import tiny

TEXT = dict(
    vocab_size=120,
    hidden_size=32,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=16,
    eos_token_id=2,  # as in OpenAI's own config.json: the end is the largest id
)
VISION = dict(
    hidden_size=48,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=32,
    patch_size=8,
)
FEATURES = 24


def make_caption_ids() -> np.ndarray:
    """Four captions of several lengths: start 118, words, end 119, then 0."""
    ids = np.zeros((4, 16), np.int64)
    words = np.random.default_rng(0).integers(1, 118, ids.shape)
    for row, length in zip(ids, (0, 3, 9, 14), strict=True):
        row[: length + 2] = [118, *words[0, :length], 119]
    return ids


def main() -> None:
    """Writes both files beside this one."""
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=FEATURES)
    model = CLIPModel(config).eval()
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    state = {k: torch.tensor(tiny.FOLDER.weight(k, s)) for k, s in shapes.items()}
    model.load_state_dict(state)
    side, ids = VISION["image_size"], make_caption_ids()
    images = tiny.uniform("clip/images", 4, 3, side, side)
    mean, std = (
        np.array(x, np.float32)[None, :, None, None]
        for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids),
            pixel_values=torch.tensor((images - mean) / std),
        )
    np.savez(
        tiny.GOLDENS / "clip_tiny.npz",
        caption_ids=ids.astype(np.int32),
        text_embeds=out.text_embeds.numpy(),
        image_embeds=out.image_embeds.numpy(),
    )
    text = json.dumps(shapes, indent=1)
    (tiny.GOLDENS / "clip_tiny.manifest.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
