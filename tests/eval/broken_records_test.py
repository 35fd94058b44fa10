"""Evaluation of a source with broken records: they are left out, counted and said."""

import logging

import numpy as np
import pytest

from flowtok_jax.data.centre import CentreReader
from flowtok_jax.data.records import Side
from flowtok_jax.eval import previews, real
from flowtok_jax.eval.real import RealImages
from flowtok_jax.runtime.errors import UserError
from tests.data import made
from tests.eval.i2t_test import karpathy as karpathy  # a fixture
from tests.modes.eval_test import (  # noqa: F401
    command,
    fakes,
    numbers,
    quick,
    results,
    start,
)

GOOD = 24
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'
# Reason -> bytes of the image and of the caption; None: there is no such file.
BROKEN = {
    "bad_text_encoding": (made.jpeg(), "ein Kühlschrank".encode("latin-1")),
    "empty_caption": (made.jpeg(), b" "),
    "empty_file": (b"", b"an empty file"),
    "missing_caption": (made.jpeg(), None),
    "missing_image": (None, b"nothing to see"),
    "not_an_image": (b"<html>404</html>", b"a page"),
    "too_large": (made.png_header(60_000, 60_000), b"a bomb"),
    "truncated_image": (made.jpeg()[:300], b"half a picture"),
    "unsupported_image": (SVG, b"a drawing"),
}


def write(folder, reasons=tuple(BROKEN)):
    """A folder of GOOD pictures, with one broken record for each reason among them."""
    folder.mkdir()
    for i in range(GOOD):
        (folder / f"{i:02d}.png").write_bytes(made.encode(made.picture(40, 40, i)))
        (folder / f"{i:02d}.txt").write_text(f"a red circle number {i}")
    for i, reason in enumerate(reasons):
        image, text = BROKEN[reason]
        for kind, data in (("png", image), ("txt", text)):
            if data is not None:
                (folder / f"{2 * i:02d}x.{kind}").write_bytes(data)
    return f"folder:{folder}"


def open_real(spec, count=1000, max_rejected=0.3, **options):
    given = dict(seed=0, threads=2, max_rejected=max_rejected) | options
    return RealImages(spec, CentreReader(20), count=count, **given)


def test_every_kind_of_broken_record_is_left_out_and_counted(tmp_path, caplog):
    spec = write(tmp_path / "set")
    found = open_real(spec)
    assert (found.drawn, found.count) == (GOOD + len(BROKEN), GOOD)
    assert found.rejected == dict.fromkeys(sorted(BROKEN), 1)
    assert found.choice["left_out"] == found.rejected
    said = f"evaluation of {spec}: {len(BROKEN)} of {found.drawn} records left out ("
    assert said in caplog.text
    assert f"too_large 1, first {tmp_path}/set/12x" in caplog.text
    captions = [f"a red circle number {i}" for i in range(GOOD)]
    assert [prompt.caption for prompt in found.prompts] == captions
    items = found.read(range(GOOD))
    # Without gaps: a sample's noise is that of its number.
    assert [item.number for item in items] == list(range(GOOD))
    assert [item.record.captions[0] for item in items] == captions
    for item in items:
        np.testing.assert_array_equal(item.image, found.pixels(item.number))


def test_what_is_measured_depends_neither_on_threads_nor_on_chunks(tmp_path):
    spec = write(tmp_path / "set")
    one, many = (open_real(spec, 20, threads=t) for t in (1, 9))
    assert one.choice == many.choice
    assert one.prompts == many.prompts
    whole = one.read(range(one.count))
    parts = [many.read(range(i, i + 1))[0] for i in range(many.count)]
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.record.captions == b.record.captions


def test_of_a_draw_the_broken_are_not_replaced(tmp_path):
    spec = write(tmp_path / "set")
    found = open_real(spec, 20, drawn_by=3)
    drawn = np.random.default_rng(3).choice(GOOD + len(BROKEN), 20, replace=False)
    names = sorted({path.stem for path in (tmp_path / "set").iterdir()})
    kept = [names[i] for i in drawn if "x" not in names[i]]
    assert [prompt.id[-2:] for prompt in found.prompts] == kept
    assert sum(found.rejected.values()) == 20 - len(kept) > 0
    # Mended, they are another protocol's; as drawn, so are others.
    others = open_real(spec, 20, drawn_by=4)
    assert others.choice["left_out_sha256"] != found.choice["left_out_sha256"]


def test_too_many_are_refused_in_one_line(tmp_path):
    spec = write(tmp_path / "set")
    with pytest.raises(UserError) as caught:
        open_real(spec, max_rejected=0.25)
    message = str(caught.value)
    assert message.startswith(f"evaluation of {spec}: 9 of 33 records read are broken")
    assert "at most 0.25 of them may be: mend the data, or allow more with" in message
    assert "\n" not in message
    assert open_real(spec, max_rejected=9 / 33).count == GOOD


def test_a_few_held_out_are_judged_with_all_of_the_source(tmp_path):
    spec = write(tmp_path / "set", ("empty_file", "not_an_image", "unsupported_image"))
    names = [f"{2 * i:02d}x" for i in range(3)]
    side = next(
        side
        for side in (Side(share / 1000, True) for share in range(1, 1000))
        if sum(map(side.has, names)) == 2
    )
    found = open_real(spec, 8, max_rejected=3 / 27, side=side)
    assert sum(found.rejected.values()) > 3 / 27 * found.drawn
    with pytest.raises(UserError, match="3 of 27 records read are broken"):
        open_real(spec, 8, max_rejected=0.1, side=side)


def test_of_many_only_the_drawn_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "LEAST", 4)
    spec = write(tmp_path / "set")
    drawn = np.random.default_rng(1).choice(GOOD + len(BROKEN), 4, replace=False)
    names = sorted({path.stem for path in (tmp_path / "set").iterdir()})
    bad = sum("x" in names[i] for i in drawn)
    found = open_real(spec, 4, max_rejected=bad / 4, drawn_by=1)
    assert sum(found.rejected.values()) == bad


def test_fewer_than_two_images_are_refused_with_what_is_broken(tmp_path):
    spec = write(tmp_path / "set")
    for i in range(1, GOOD):
        (tmp_path / "set" / f"{i:02d}.png").write_bytes(b"")
    message = r"has 1 images; expected at least 2: 32 of 33 records left out \(empty"
    with pytest.raises(UserError, match=message):
        open_real(spec, max_rejected=1.0)


def test_what_another_process_cannot_read_is_left_out_here(tmp_path, monkeypatch):
    spec = write(tmp_path / "set", ("empty_file",))

    def total(is_bad):
        assert is_bad.sum() == 1
        return 2 * is_bad + np.eye(len(is_bad), dtype=np.int32)[5]

    monkeypatch.setattr("flowtok_jax.runtime.processes.total", total)
    found = open_real(spec)
    assert found.rejected == {"empty_file": 1, "unreadable_file": 1}
    assert found.count == GOOD - 1


def test_a_picture_that_breaks_meanwhile_is_an_error(tmp_path):
    found = open_real(write(tmp_path / "set"))
    (tmp_path / "set" / "03.png").write_bytes(b"no image")
    message = "03 of folder:.* was sound when the evaluation began, .*not_an_image"
    with pytest.raises(UserError, match=message):
        found.read(range(GOOD))


@pytest.mark.parametrize("max_rejected", [0.3, 0.1])
def test_previews_say_what_is_broken_and_are_refused_where_it_is_much(
    tmp_path, caplog, max_rejected
):
    config = made_config(write(tmp_path / "set"), max_rejected)
    with caplog.at_level(logging.WARNING):
        if max_rejected == 0.1:
            with pytest.raises(UserError, match="9 of 33 records read are broken"):
                previews.load_preview_examples(config)
            return
        found = previews.load_preview_examples(config)
    assert len(set(found.captions)) == GOOD
    assert "previews: 9 of 33 records left out (" in caplog.text


def made_config(spec, max_rejected):
    from configs import demo as demo_config

    config = demo_config.get_config()
    config.data.eval = spec
    config.data.max_rejected = max_rejected
    config.log.preview_samples = 64
    return config


THREE = ("empty_file", "truncated_image", "unsupported_image")


def test_all_parts_measure_the_others_and_say_so(cli, demo, tmp_path):
    spec = write(tmp_path / "set", THREE)
    flags = {"data.eval": spec, "data.max_rejected": 0.3, "eval.samples": 100}
    outcome = cli(*command(demo, tmp_path / "a", **flags))
    assert outcome.status == 0, outcome.stderr
    assert "3 of 27 records left out (" in outcome.stderr
    found = results(tmp_path / "a")
    assert set(found) == {"t2i", "i2t", "tokenizer"}
    for part in found.values():
        assert part["rejected"] == dict.fromkeys(THREE, 1)
        assert part["protocol"]["samples"] == GOOD
        assert part["protocol"]["left_out"] == part["rejected"]
    assert f"retrieval_top1_pixels_n{GOOD}_of{GOOD}" in found["t2i"]["metrics"]
    said = found["t2i"]["details"]["retrieval_rejected"]
    assert said == part["rejected"]
    assert f"psnr_db_n{GOOD}" in found["tokenizer"]["metrics"]
    assert f"word_f1_n{GOOD}" in found["i2t"]["metrics"]
    # Killed and gone on, in other chunks: a chunk of each part is lost.
    for chunk in (tmp_path / "a").rglob("00010-00020.npz"):
        chunk.unlink()
    for path in (tmp_path / "a" / "eval").glob("*.json"):
        path.unlink()
    outcome = cli(*command(demo, tmp_path / "a", **flags, **{"data.threads": 1}))
    assert "goes on: 14 of 24 are there" in outcome.stderr
    again = results(tmp_path / "a")
    for name, part in found.items():
        assert again[name] | {"seconds": 0} == part | {"seconds": 0}


@pytest.mark.slow
def test_two_processes_leave_out_the_same(demo, tmp_path):
    spec = write(tmp_path / "set", THREE)
    flags = {"data.eval": spec, "data.max_rejected": 0.3, "eval.samples": 20}
    found = {}
    for count in (1, 2):
        workdir = tmp_path / f"{count}"
        started = start(count, 8 // count, *command(demo, workdir, **flags))
        outputs = [process.communicate(timeout=300) for process in started]
        assert [p.returncode for p in started] == [0] * count, outputs
        assert sum("records left out (" in x for _, x in outputs) == 1
        found[count] = numbers(results(workdir))
    assert found[1] == found[2]
    assert all(part["rejected"] for part in found[1].values())


def test_above_the_share_nothing_is_measured(cli, demo, tmp_path):
    spec = write(tmp_path / "set", THREE)
    outcome = cli(*command(demo, tmp_path / "out", **{"data.eval": spec}))
    assert outcome.status == 2
    assert "3 of 27 records read are broken" in outcome.complaint
    assert "allow more with data.max_rejected" in outcome.complaint


def test_filters_refuse_none_of_the_images_that_are_captioned(cli, demo, tmp_path):
    spec = write(tmp_path / "set", THREE)
    for i in range(3):
        wide = made.encode(made.picture(80, 40, i))
        (tmp_path / "set" / f"{i:02d}.png").write_bytes(wide)
    flags = {"data.eval": spec, "data.max_rejected": 0.3, "eval.weights": ""}
    flags |= {"data.filters.aspect": "(0.9,1.1)", "eval.samples": 100}
    flags["eval.parts"] = "i2t,tokenizer"
    outcome = cli(*command(demo, tmp_path / "a", **flags))
    assert outcome.status == 0, outcome.stderr
    found = results(tmp_path / "a")
    assert found["i2t"]["rejected"] == dict.fromkeys(THREE, 1)
    filtered = found["tokenizer"]["rejected"]
    assert filtered == {**found["i2t"]["rejected"], "filtered_aspect": 3}
    samples = [found[part]["protocol"]["samples"] for part in ("i2t", "tokenizer")]
    assert samples == [GOOD, GOOD - 3]


def test_a_published_split_is_captioned_whole_or_not_at_all(
    cli,
    demo,
    tmp_path,
    karpathy,  # noqa: F811
    quick,  # noqa: F811
):
    (tmp_path / "images" / "val2014" / "4.jpg").write_bytes(b"no image")
    flags = {"data.eval": karpathy[1], "data.max_rejected": 0.3, "eval.weights": ""}
    outcome = cli(*command(demo, tmp_path / "out", **flags, **{"eval.parts": "i2t"}))
    assert outcome.status == 2
    complaint = outcome.stderr.splitlines()[-1]
    assert "1 of 7 records left out (not_an_image 1, first " in complaint
    assert "4.jpg); expected all of a published split" in complaint
    flags["eval.parts"] = "tokenizer"
    outcome = cli(*command(demo, tmp_path / "out", **flags))
    assert outcome.status == 0, outcome.stderr
    assert results(tmp_path / "out")["tokenizer"]["rejected"] == {"not_an_image": 1}
    assert "psnr_db_n6" in outcome.stdout


def test_captions_are_measured_on_one_source(cli, demo, tmp_path):
    flags = {"data.eval": "shapes,shapes", "eval.parts": "i2t", "eval.samples": 4}
    outcome = cli(*command(demo, tmp_path / "out", **flags))
    assert outcome.status == 2
    assert "captions are measured on one source of images; got" in outcome.complaint
