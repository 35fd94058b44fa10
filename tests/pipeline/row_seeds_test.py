"""Rows with seeds of their own: each is as it is alone, whatever its company."""

import jax
import numpy as np
import pytest

from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.sampling import noise_key, row_noise

PROMPTS = ["a red circle", "a blue square at the top left", "a red circle"]
SEEDS = [7, 2**32 - 1, 8]


@pytest.fixture(scope="module")
def flowtok(demo):
    made = FlowTok.from_pretrained(demo.workdir)
    made.sample = made.sample._replace(source="sample")
    made.caption = made.caption._replace(source="sample")
    return made


def test_noise_of_rows_with_own_keys_is_that_of_each_key():
    rows = np.array([0, 3, 3])
    own = row_noise(jax.numpy.asarray(noise_key(SEEDS)), rows, (2, 4))
    for i, seed in enumerate(SEEDS):
        one = row_noise(jax.random.key(seed), rows[i : i + 1], (2, 4))
        np.testing.assert_array_equal(own[i], one[0])


def test_a_prompt_with_its_seed_is_drawn_as_it_is_alone(flowtok):
    together = flowtok.text_to_image(PROMPTS, SEEDS)
    for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = flowtok.text_to_image([prompt], seed)[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 1e-3  # seeds 7 and 8


def test_seeds_of_rows_count_on_for_several_images(flowtok):
    several = flowtok.text_to_image(PROMPTS[:2], [3, 50], num_images=2)
    alone = [flowtok.text_to_image([PROMPTS[i]], s)[0] for i, s in
             ((0, 3), (0, 4), (1, 50), (1, 51))]  # fmt: skip
    np.testing.assert_allclose(several, np.stack(alone), atol=1e-5)


def test_an_image_with_its_seed_is_described_as_it_is_alone(flowtok):
    images = flowtok.text_to_image(PROMPTS, SEEDS)
    seeds = [7, 1000, 8]  # each counts on, candidate by candidate
    together = flowtok.image_to_text(images, seeds, candidates=3)
    for i, seed in enumerate(seeds):
        assert flowtok.image_to_text(images[i], seed, candidates=3) == [together[i]]


def test_batches_split_seeds_as_they_split_rows(flowtok):
    whole = flowtok.text_to_image(PROMPTS, SEEDS)
    split = flowtok.text_to_image(PROMPTS, SEEDS, batch_size=2)
    np.testing.assert_allclose(whole, split, atol=1e-5)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([1, 2], "2 seeds for 3 rows"),
        ([1, 2, -1], "0 to 2"),
        ([], "0 seeds for 3 rows"),
    ],
)
def test_seeds_that_do_not_fit_are_refused(flowtok, seeds, said):
    with pytest.raises(UserError, match=said):
        flowtok.text_to_image(PROMPTS, seeds)
