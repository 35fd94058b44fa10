import json

import numpy as np
import pytest

from flowtok_jax.eval import protocols
from flowtok_jax.eval.protocols import (
    CATEGORIES,
    PROTOCOLS,
    metric_suffix,
    read_prompts,
)
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import json_sha256

GOLDEN = [203, 313, 210, 31, 321, 190]  # ids, by sha256 of '0/ID'


def coco(images=40):
    """Annotations of COCO's form, 5 an image."""
    rows = [
        {"image_id": 1000 + i, "id": 10 * i + k, "caption": f"a picture {i}\nby {k} "}
        for i in range(images)
        for k in range(5)
    ]
    return {"info": {}, "annotations": rows}


def mjhq(count=60):
    return {
        f"{i:05x}": {"category": CATEGORIES[i % 10], "prompt": f"prompt {i}"}
        for i in range(count)
    }


def write(folder, content):
    path = folder / "captions.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_coco_draws_one_caption_an_image(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, coco()).replace(str(tmp_path), "~")
    found = read_prompts("coco_fid_30k", path, 40)
    assert sorted(int(p.id) // 10 for p in found) == list(range(40))
    assert {p.caption for p in found} <= {
        f"a picture {i} by {k}" for i in range(40) for k in range(5)
    }
    # Not the first of each, nor in the file's order.
    assert len({int(p.id) % 10 for p in found}) == 5
    assert [int(p.id) for p in found] != sorted(int(p.id) for p in found)
    assert read_prompts("coco_fid_30k", path, 12) == found[:12]


def test_the_draw_does_not_depend_on_the_order_of_the_file(tmp_path):
    content = coco()
    wanted = read_prompts("coco_fid_30k", write(tmp_path, content), 30)
    np.random.default_rng(0).shuffle(content["annotations"])
    assert read_prompts("coco_fid_30k", write(tmp_path, content), 30) == wanted


def test_the_draw_is_this_one_for_ever(tmp_path):
    found = read_prompts("coco_fid_30k", write(tmp_path, coco()), 6)
    assert [int(p.id) for p in found] == GOLDEN
    assert json_sha256(found) != json_sha256(found[::-1])


def test_mjhq_has_every_prompt_with_its_category(tmp_path):
    found = read_prompts("mjhq_30k", write(tmp_path, mjhq()), 60)
    assert {p.id: p.group for p in found} == {
        k: v["category"] for k, v in mjhq().items()
    }
    first = read_prompts("mjhq_30k", write(tmp_path, mjhq()), 30)
    assert len({p.group for p in first}) >= 8  # of all categories, not of the first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("coco", coco(), "'coco'; expected one of coco_fid_30k, mjhq_30k, or ''"),
        ("coco_fid_30k", [1], "has no annotations; expected COCO's captions_val2014"),
        ("coco_fid_30k", {"annotations": []}, "has no annotations"),
        (
            "coco_fid_30k",
            {"annotations": [{"caption": "a dog"}]},
            "annotation 0 has no id, image_id; expected COCO's",
        ),
        ("coco_fid_30k", {"annotations": [1]}, "annotation 0 has no id, image_id, cap"),
        (
            "coco_fid_30k",
            {"annotations": [{"id": 1, "image_id": [2], "caption": None}]},
            "annotation 0 has no image_id, caption; expected COCO's",
        ),
        ("coco_fid_30k", coco(5), "gives 5 captions, eval.samples asks for 8"),
        (
            "mjhq_30k",
            [{"prompt": "a dog"}],
            "has no ids; expected MJHQ-30K's meta",
        ),
        ("mjhq_30k", {"a": {"prompt": "a dog"}}, "a has no category"),
        ("mjhq_30k", coco(), "info has no category, prompt"),
        ("mjhq_30k", {"a": 1}, "a has no category, prompt"),
        (
            "mjhq_30k",
            {"a": {"prompt": "a dog", "category": "dogs"}},
            "a has the unknown category 'dogs'; expected one of animals, art,",
        ),
    ],
)
def test_captions_that_are_not_the_protocols_are_refused(
    tmp_path, name, content, message
):
    with pytest.raises(UserError) as error:
        read_prompts(name, write(tmp_path, content), 8)
    assert message in str(error.value)


def test_files_and_counts_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "cut.json").write_text('{"annotations": [')
    for path, samples, message in (
        ("", 8, r"needs --config.eval.captions=FILE, its captions_val2014.json"),
        (f"{tmp_path}/no.json", 8, "no.json cannot be read"),
        (
            f"{tmp_path}/cut.json",
            8,
            "cut.json cannot be read .*; expected captions",
        ),
        ("x", 30_001, "eval.samples is 30001; coco_fid_30k has 30000 at most"),
    ):
        with pytest.raises(UserError, match=message):
            read_prompts("coco_fid_30k", path, samples)


def test_names_tell_how_many_samples_a_metric_rests_on(monkeypatch):
    assert metric_suffix("coco_fid_30k", 30_000) == ""
    assert metric_suffix("coco_fid_30k", 512) == "_partial_n512"
    assert metric_suffix("", 512) == "_n512"
    assert metric_suffix("mjhq_30k", 30_000, 3000) == ""
    assert metric_suffix("mjhq_30k", 600, 61) == "_partial_n61"
    assert PROTOCOLS["mjhq_30k"].samples == 30_000
    assert len(protocols.CATEGORIES) == 10
