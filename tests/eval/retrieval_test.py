import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flowtok_jax.data.centre import CentreReader, open_images
from flowtok_jax.eval.real import RealImages
from flowtok_jax.eval.retrieval import (
    SPACES,
    GalleryImages,
    Retrieval,
    averaged,
    count_nearer,
)
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError

SIDE = 8
GREYS = (0, 40, 80, 120, 160, 200, 240)


def test_cells_are_averages_of_what_they_cover():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :2, :2, 1] = [[10, 20], [30, 41]]
    image[0, 3, 3] = 255
    cells = averaged(image, 2).reshape(2, 2, 3)
    np.testing.assert_array_equal(cells[0, 0], [0, 25.25, 0])
    np.testing.assert_array_equal(cells[1, 1], [63.75] * 3)
    assert not cells[0, 1].any()
    assert not cells[1, 0].any()


def test_a_cell_takes_its_share_of_a_pixel_that_it_cuts():
    line = np.array([0, 90, 30], np.uint8)
    image = np.broadcast_to(line[None, None, :, None], (1, 3, 3, 3))
    cells = averaged(image, 2).reshape(2, 2, 3)
    # 1.5 pixels each: (0 + 90 / 2) / 1.5 and (90 / 2 + 30) / 1.5.
    np.testing.assert_allclose(cells[:, :, 0], [[30, 50]] * 2, rtol=1e-6)


def test_an_image_no_larger_than_the_cells_keeps_all_its_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(averaged(images, 4), images.reshape(2, -1))
    wide = averaged(images, 8).reshape(2, 8, 8, 3)
    np.testing.assert_allclose(wide[:, ::2, 1::2], images, rtol=1e-6)


GALLERY = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10], [50, 50]])


@pytest.mark.parametrize(
    ("query", "own", "nearer"),
    [
        ([1.0, 1], 0, 0),  # the nearest is its own
        ([6.0, 1], 0, 1),  # the second nearest
        ([9.0, 9.5], 0, 3),
        ([0.0, 0], 4, 4),
        ([5.0, 5], 2, 0),  # four at the same distance: none is strictly nearer
    ],
)
def test_images_nearer_than_the_own_are_counted(query, own, nearer):
    found = count_nearer(np.array([query]), GALLERY, np.array([own]))
    assert found.tolist() == [nearer]


def test_many_queries_are_counted_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((11, 5))
    gallery = rng.standard_normal((23, 5)) + 1000
    own = rng.integers(0, 23, 11)
    distances = ((queries[:, None] - gallery) ** 2).sum(-1)
    wanted = [(d < d[i]).sum() for d, i in zip(distances, own, strict=True)]
    monkeypatch.setattr("flowtok_jax.eval.retrieval.TOGETHER", 4)
    assert count_nearer(queries, gallery, own).tolist() == wanted


class Grey(FlowTok):
    """Stands in for one whose only token is an image's mean, and who decodes darker."""

    def __init__(self, loss: float = 0.0):
        self.loss = loss
        self.sizes = set()

    def encode_image(self, images):
        self.sizes.add(len(images))
        mean = jnp.asarray(images.mean((1, 2, 3))[:, None, None])
        return Posterior(mean, mean)

    def decode_image(self, tokens, prompts):
        assert len(prompts) == len(tokens)
        pixels = np.asarray(tokens)[:, :, :, None] - self.loss
        return np.broadcast_to(pixels, (len(tokens), SIDE, SIDE, 3))


def flat(*greys: int) -> np.ndarray:
    """Images of one grey each."""
    pixels = np.array(greys, np.uint8)[:, None, None, None]
    return np.broadcast_to(pixels, (len(greys), SIDE, SIDE, 3)).copy()


def write(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    return f"folder:{folder}"


def make(spec, *more, count=100, most=1000, loss=0.0):
    centre = CentreReader(SIDE)
    limits = dict(threads=2, max_rejected=0.3)
    real = RealImages(spec, centre, count=count, seed=0, **limits)
    options = dict(key="gallery", image_size=SIDE, seed=0)
    others = open_images(",".join((spec, *more)), **options)
    images = GalleryImages(real, others, centre, most=most, **limits)
    flowtok = Grey(loss)
    return flowtok, Retrieval(flowtok, images, side=2, rows=3, spec="")


def measure(retrieval, drawn):
    arrays = retrieval.see(drawn, ["a caption"] * len(drawn), range(len(drawn)))
    return retrieval.measure(arrays)


def test_right_images_are_told_from_wrong_ones(tmp_path):
    flowtok, retrieval = make(write(tmp_path / "set", flat(*GREYS)))
    # Three right, two whose own is the second nearest, one third, one seventh.
    found = measure(retrieval, flat(0, 45, 79, 145, 185, 119, 0))
    ends = [f"_{space}{end}" for end in ("", "_reconstructed") for space in SPACES]
    top1 = {f"retrieval_top1{end}_n7_of7" for end in ends}
    top5 = {f"retrieval_top5{end}_n7_of7" for end in ends}
    chance = {"retrieval_top1_chance_of7", "retrieval_top5_chance_of7"}
    assert set(found.metrics) == top1 | top5 | chance
    for space in SPACES:
        assert found.metrics[f"retrieval_top1_{space}_n7_of7"] == 3 / 7
        assert found.metrics[f"retrieval_top5_{space}_n7_of7"] == 6 / 7
        assert found.metrics[f"retrieval_top1_{space}_reconstructed_n7_of7"] == 1
    assert found.metrics["retrieval_top1_chance_of7"] == 1 / 7
    assert found.metrics["retrieval_top5_chance_of7"] == 5 / 7
    assert flowtok.sizes == {3}


def test_what_the_tokenizer_loses_is_the_ceiling(tmp_path):
    spec = write(tmp_path / "set", flat(*GREYS))
    _, retrieval = make(spec, loss=50 / 255)
    found = measure(retrieval, flat(*GREYS))
    # All but black come back nearer to the next darker grey.
    for space in SPACES:
        assert found.metrics[f"retrieval_top1_{space}_n7_of7"] == 1
        name = f"retrieval_top1_{space}_reconstructed_n7_of7"
        assert found.metrics[name] == pytest.approx(1 / 7)


def test_equal_images_are_one(tmp_path):
    images = flat(0, 100, 100, 100, 200)
    _, retrieval = make(write(tmp_path / "set", images))
    found = measure(retrieval, flat(1, 101, 99, 100, 60))
    # The last one's own, 200, is beaten by both others.
    assert found.metrics["retrieval_top1_pixels_n5_of3"] == 4 / 5
    assert found.metrics["retrieval_top5_chance_of3"] == 1


def test_other_images_are_searched_too(tmp_path):
    spec = write(tmp_path / "set", flat(0, 100))
    more = write(tmp_path / "more", flat(90, 100, 250))
    for sources, of in (((), 2), ((more,), 4)):
        _, retrieval = make(spec, *sources)
        found = measure(retrieval, flat(0, 94))
        name = f"retrieval_top1_pixels_n2_of{of}"
        assert found.metrics[name] == (1 if of == 2 else 1 / 2)


def test_all_images_of_the_source_are_searched_up_to_the_limit(tmp_path):
    spec = write(tmp_path / "set", flat(*GREYS))
    own = np.random.default_rng(0).choice(7, 2, replace=False)  # as they are drawn
    assert own.tolist() == [5, 4]
    for most, of in ((1000, 7), (4, 4), (1, 2)):
        _, retrieval = make(spec, count=2, most=most)
        found = measure(retrieval, flat(GREYS[5], GREYS[0] + 1))
        right = 1 if of == 2 else 1 / 2  # the first is nearer, if it is there
        assert found.metrics[f"retrieval_top1_pixels_n2_of{of}"] == right


def test_broken_records_are_neither_drawn_nor_searched_and_counted(tmp_path, caplog):
    spec = write(tmp_path / "set", flat(*GREYS))
    more = write(tmp_path / "more", flat(90, 100, 250))
    (tmp_path / "set" / "2.png").write_bytes(b"no image")
    (tmp_path / "more" / "1.png").write_bytes(b"")
    _, retrieval = make(spec, more)
    # The third is the fourth picture's: numbers have no gap.
    arrays = retrieval.see(flat(0, 40, 120), ["a caption"] * 3, range(3))
    rest = retrieval.see(flat(160, 200, 240), ["a caption"] * 3, range(3, 6))
    joined = {key: np.concatenate([x, rest[key]]) for key, x in arrays.items()}
    found = retrieval.measure(joined)
    assert found.metrics["retrieval_top1_pixels_n6_of8"] == 1
    rejected = {"empty_file": 1, "not_an_image": 1}
    assert found.details == {"retrieval_rejected": rejected}
    assert "retrieval: 2 of 10 records left out (not_an_image 1, first" in caplog.text


def test_a_gallery_of_too_many_broken_records_is_refused(tmp_path):
    spec = write(tmp_path / "set", flat(*GREYS))
    more = write(tmp_path / "more", flat(*GREYS))
    for i in range(5):
        (tmp_path / "more" / f"{i}.png").write_bytes(b"no image")
    _, retrieval = make(spec, more)
    message = "5 of 14 records read are broken .*at most 0.3 of them may be"
    with pytest.raises(UserError, match=message):
        retrieval.see(flat(0), ["a caption"], range(1))
    # Of the first few records the share would say nothing.
    _, retrieval = make(spec, more, most=7)
    retrieval.see(flat(0), ["a caption"], range(1))
