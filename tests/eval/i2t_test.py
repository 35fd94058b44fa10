import json

import numpy as np
import pytest

from flowtok_jax.data import scenes
from flowtok_jax.data.centre import CentreReader
from flowtok_jax.eval.i2t import caption_images, captions_by_image, score_hypotheses
from flowtok_jax.eval.real import RealImage, RealImages, image_id
from flowtok_jax.eval.score import read_references
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from tests import tiny
from tests.data import made


@pytest.fixture
def karpathy(tmp_path):
    """Karpathy's JSON with 7 images to test on and others, the images in folders."""
    rows, root = [], tmp_path / "images" / "val2014"
    root.mkdir(parents=True)
    for i in range(9):
        (root / f"{i}.jpg").write_bytes(made.jpeg(i, width=40, height=32))
        sentences = [{"raw": f"the picture number {i} in words {j}"} for j in range(5)]
        rows.append(
            {
                "filepath": "val2014",
                "filename": f"{i}.jpg",
                "split": "val" if i < 2 else "test",
                "cocoid": 500 - i,
                "sentences": sentences,
            }
        )
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": rows}))
    return f"{path}", f"karpathy:{path}:{tmp_path / 'images'}:test"


def open_images(spec, size=32, count=1000) -> RealImages:
    options = dict(count=count, seed=0, threads=2, max_rejected=0.0)
    return RealImages(spec, CentreReader(size), **options)


def item(source, number) -> RealImage:
    (found,) = source.read(range(number, number + 1))
    return found


class Reader(FlowTok):
    """Stands in for one that says an image's references, found by its colour."""

    def __init__(self, source):
        self.known = {}
        for image in source.read(range(source.count)):
            pixel = (image.image[0, 0] / 255).astype(np.float32)
            self.known[tuple(pixel.round(4))] = source.references(image)[0]
        self.rows = []

    def image_to_text(self, images, seed, first_row):
        assert images.dtype == np.float32
        self.rows += range(first_row, first_row + len(images))
        return [self.known[tuple(image[0, 0].round(4))] for image in images]


def caption_all(flowtok, source, chunk, **options) -> list[dict]:
    found = []
    for start in range(0, source.count, chunk):
        items = source.read(range(start, min(start + chunk, source.count)))
        found += caption_images(flowtok, source, items, **options)
    return found


def test_every_image_is_captioned_once_and_scored_by_all_references(
    karpathy, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java
    path, spec = karpathy
    source = open_images(spec)
    reader = Reader(source)
    hypotheses = caption_all(reader, source, chunk=3)
    assert reader.rows == list(range(7))
    hypotheses = json.loads(
        json.dumps(hypotheses)
    )  # as a run that is killed keeps them
    assert hypotheses[1] == {
        "image_id": 497,
        "caption": "the picture number 3 in words 0",
        "references": [f"the picture number 3 in words {j}" for j in range(5)],
    }
    assert set(captions_by_image(hypotheses)) == set(read_references(path))
    scores = score_hypotheses(hypotheses)
    assert scores.metrics["bleu4_simple_tokens"] == pytest.approx(1, abs=1e-8)
    assert scores.protocol["references"] == 35


def test_images_are_cut_out_of_the_middle(karpathy):
    found = item(open_images(karpathy[1], size=16), 0)
    (wanted,) = (made.picture(40, 32, 2),)
    assert found.image.shape == (16, 16, 3)
    middle = np.asarray(wanted.resize((20, 16)), float)[:, 2:18]
    assert np.abs(found.image - middle).mean() < 8
    assert np.abs(np.asarray(wanted.resize((16, 16)), float) - middle).mean() > 8


@pytest.fixture(scope="module")
def noisy(flowtok):
    """The tiny demo with noise for velocities, so that captions differ."""
    params = dict(flowtok.params)
    dit = tiny.random_like(params["i2t"]["dit"], std=0.5)
    params["i2t"] = params["i2t"] | {"dit": dit}
    caption = flowtok.caption._replace(source="sample")
    return FlowTok(flowtok.nets, params, flowtok.vocabulary, caption=caption)


def test_captions_do_not_depend_on_the_chunks(karpathy, noisy):
    source = open_images(karpathy[1])
    whole = caption_all(noisy, source, chunk=7)
    assert caption_all(noisy, source, chunk=3) == whole
    assert caption_all(noisy, source, chunk=7, seed=1) != whole


def test_the_references_of_a_scene_are_all_its_phrasings():
    source = open_images("shapes:held_out", count=9)
    found = item(source, 3)
    assert image_id(found.record.metadata, found.number) == 3
    assert found.image.shape == (32, 32, 3)
    references = source.references(found)
    assert len(references) > 1
    (scene,) = {scenes.parse_caption(text) for text in references}
    assert scenes.is_held_out(scene)


def test_ids_are_indices_where_the_source_has_none(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(made.jpeg(i))
        (tmp_path / f"{i}.txt").write_text(f"picture {i}")
    source = open_images(f"folder:{tmp_path}")
    items = source.read(range(2))
    assert [image_id(x.record.metadata, x.number) for x in items] == [0, 1]
    assert source.references(items[1]) == ["picture 1"]


def test_what_cannot_be_measured_is_said_in_one_line():
    with pytest.raises(UserError, match="has latents or weights"):
        open_images("latents:x/*.tar")
    same = [{"image_id": 5, "caption": "a", "references": ["a"]}] * 2
    with pytest.raises(UserError, match="image 5 occurs twice"):
        score_hypotheses(same)
