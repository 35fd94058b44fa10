"""A page on which the emoji weights draw names and name pictures, for a Space.

    pip install -r examples/space/requirements.txt
    python examples/space/app.py

`draw` and `describe` need no page: they turn its values into calls of FlowTok.
"""

import functools

import gradio
import numpy as np
from PIL import Image

from flowtok_jax import FlowTok
from flowtok_jax.runtime.config import choose_seeds
from flowtok_jax.runtime.errors import UserError

WEIGHTS = "emoji"  # weights that ship, or a hub id OWNER/NAME
SIDE = 256  # pixels on the page
MOST = 8  # pictures of a prompt
PROMPTS = ["duck", "pizza", "crescent moon", "woman farmer dark skin tone"]
ABOUT = """# FlowTok: captions and pictures as one short token sequence

Emoji of 64 x 64 pixels from their English names, and back.
Drawings after [OpenMoji](https://openmoji.org), CC BY-SA 4.0."""


@functools.cache
def flowtok() -> FlowTok:
    """Loads the weights, once."""
    return FlowTok.from_pretrained(WEIGHTS)


def draw(
    prompt: str, number: float, varied: bool, steps: float, seed: float
) -> list[tuple[Image.Image, str]]:
    """Draws a prompt; each picture comes with its seed, which draws it again.

    Args:
        number: of pictures, each of another seed.
        varied: starts from draws of the caption's distribution, not from its mean.
    """
    if not prompt.strip():
        raise gradio.Error("nothing to draw: the prompt is empty")
    source = "sample" if varied else "mean"
    # Drawn from the mean, all would be alike.
    count = int(number) if varied else 1
    try:
        seeds = choose_seeds(int(seed), min(count, MOST))
        pictures = flowtok().draw(
            [prompt],
            int(seed),
            num_images=len(seeds),
            source=source,
            num_steps=int(steps),
        )
    except UserError as error:
        raise gradio.Error(str(error)) from error
    large = [picture.resize((SIDE, SIDE), Image.NEAREST) for picture in pictures]
    return [(picture, f"seed {s}") for picture, s in zip(large, seeds, strict=True)]


def describe(picture: np.ndarray | Image.Image | None) -> str:
    """Names a picture."""
    if picture is None:
        raise gradio.Error("no picture: expected one, uploaded or drawn")
    return flowtok().image_to_text(picture)[0]


def make_page() -> gradio.Blocks:
    """Makes the page, with a tab for each direction."""
    with gradio.Blocks(title="FlowTok") as page:
        gradio.Markdown(ABOUT)
        with gradio.Tab("Draw"):
            prompt = gradio.Textbox(PROMPTS[0], label="Name of an emoji")
            with gradio.Accordion("Options", open=False):
                varied = gradio.Checkbox(False, label="Variations")
                number = gradio.Slider(1, MOST, 4, step=1, label="How many of them")
                steps = gradio.Slider(1, 8, 2, step=1, label="Steps")
                seed = gradio.Number(0, precision=0, minimum=0, label="Seed")
            drawn = gradio.Gallery(label="Drawn", format="png")
            values = [prompt, number, varied, steps, seed]
            button = gradio.Button("Draw", variant="primary")
            button.click(draw, values, drawn)
            prompt.submit(draw, values, drawn)
            gradio.Examples([[name] for name in PROMPTS], [prompt])
        with gradio.Tab("Describe"):
            picture = gradio.Image(type="pil", label="Picture")
            said = gradio.Textbox(label="What it says")
            gradio.Button("Describe", variant="primary").click(describe, picture, said)
    return page


if __name__ == "__main__":
    flowtok().compile([1])  # while the Space starts, not when somebody waits
    make_page().queue(max_size=32).launch()
