import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from PIL import Image

from flowtok_jax.data.vocabulary import END, START, Vocabulary
from flowtok_jax.eval import clip_score as module
from flowtok_jax.eval.clip_score import clip_score, preprocess
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.nets import MetricNet

WORDS = ["!", "dark", "red", "green", "blue", "grey", START, END]  # "!" is the pad


@pytest.fixture
def vocabulary():
    ids = {word: i for i, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="!"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Vocabulary(words, 4)


class Text(nn.Module):
    vocab_size: int = len(WORDS)
    context: int = 6


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Scorer(nn.Module):
    """Stands in for CLIP: features are an image's mean colour and the colour that the
    word before the end token names, "dark" being the opposite of it.
    """

    text: Text = Text()
    image_size: int = 8

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, ())

    def embed_image(self, images):
        assert images.shape[1:] == (8, 8, 3)
        return unit(self.scale * images.mean((1, 2)) + 1e-6)

    def embed_text(self, ids):
        assert ids.shape[1:] == (6,)
        end = ids.argmax(-1)
        last = jnp.take_along_axis(ids, end[:, None] - 1, 1)[:, 0]
        colours = jnp.concatenate([jnp.zeros((2, 3)), jnp.eye(3), jnp.ones((3, 3))])
        sign = jnp.where((ids == WORDS.index("dark")).any(-1), -1.0, 1.0)
        return unit(sign[:, None] * colours[last] + 1e-6)


@pytest.fixture
def net():
    return MetricNet(Scorer(), {"scale": jnp.ones(())}, "0" * 64)


def plain(*colours) -> np.ndarray:
    """Images of 12 x 10 of one colour each."""
    return np.stack([np.full((10, 12, 3), colour, np.uint8) for colour in colours])


def test_scores_are_a_hundred_times_the_cosine_cut_at_zero(net, vocabulary):
    images = plain((200, 0, 0), (0, 90, 0), (90, 90, 90), (200, 0, 0), (200, 0, 0))
    captions = ["red", "blue", "grey red", "grey", "dark red"]
    scores = clip_score(net, vocabulary, images, captions)
    root = 100 / np.sqrt(3)
    assert scores == pytest.approx([100, 0, root, root, 0], abs=1e-3)
    assert scores.dtype == np.float64


def test_captions_are_cut_at_the_context_of_the_tower_and_padded_with_zero(
    net, vocabulary
):
    images = plain((0, 0, 255), (0, 0, 255))
    # [start, five words, ...] is cut to four words and the end token.
    captions = ["red red red blue red red", "red red red red blue"]
    scores = clip_score(net, vocabulary, images, captions)
    assert scores == pytest.approx([100, 0], abs=1e-3)


def test_any_number_of_images_goes_through_one_program(net, vocabulary, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 4)
    compiled = module._cosines._cache_size()
    for count in (1, 4, 9):
        images = plain(*[(255, 0, 0), (0, 255, 0)] * count)[:count]
        scores = clip_score(net, vocabulary, images, ["red"] * count)
        assert scores == pytest.approx(([100, 0] * count)[:count], abs=1e-3)
    assert module._cosines._cache_size() == compiled + 1
    assert clip_score(net, vocabulary, plain((0, 0, 0))[:0], []).shape == (0,)


def test_images_are_resized_by_bicubic_and_cut_in_the_middle():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    image = coarse.resize((45, 30), Image.Resampling.BICUBIC)
    (found,) = preprocess(np.asarray(image)[None], 20)
    whole = image.resize((30, 20), Image.Resampling.BICUBIC)  # shorter side first
    wanted = np.asarray(whole.crop((5, 0, 25, 20)), np.float32) / 255
    assert found == pytest.approx(wanted, abs=1e-6)
    assert np.abs(wanted).max() <= 1


def test_mistakes_of_the_caller(net, vocabulary):
    with pytest.raises(UserError, match="got 2 images and 1 captions"):
        clip_score(net, vocabulary, plain((0, 0, 0), (0, 0, 0)), ["red"])
    trained = Vocabulary.train(["red and blue"], 8, 6)  # its end token is the id 1
    with pytest.raises(UserError, match="end token 1; expected CLIP's own, 8 with 7"):
        clip_score(net, trained, plain((0, 0, 0)), ["red"])
    small = net._replace(module=Scorer(Text(vocab_size=7)), sha256="random")
    with pytest.raises(UserError, match="vocabulary of 8 tokens"):
        clip_score(small, vocabulary, plain((0, 0, 0)), ["red"])


def test_random_towers_take_any_vocabulary(net, vocabulary):
    random = net._replace(sha256="random")
    trained = Vocabulary.train(["red and blue"], 8, 6)
    assert clip_score(random, trained, plain((0, 9, 0)), ["red"]).shape == (1,)
