import json

import pytest

from flowtok_jax.eval import score
from flowtok_jax.eval.score import read_references, read_results
from flowtok_jax.runtime.errors import UserError


def write(path, content) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def write_results(path, captions) -> str:
    rows = [{"image_id": image, "caption": text} for image, text in captions.items()]
    return write(path, rows)


@pytest.fixture
def karpathy(tmp_path):
    rows = [
        {
            "cocoid": 100 + i,
            "imgid": i,
            "split": split,
            "sentences": [{"raw": f"a dog number {i} {j} runs"} for j in range(2)],
        }
        for i, split in enumerate(["train", "test", "val", "test", "restval"])
    ]
    return write(tmp_path / "dataset_coco.json", {"images": rows})


def test_references_of_karpathys_splits(karpathy):
    found = read_references(karpathy)
    assert found == {
        101: ["a dog number 1 0 runs", "a dog number 1 1 runs"],
        103: ["a dog number 3 0 runs", "a dog number 3 1 runs"],
    }
    assert list(read_references(karpathy, "train+restval")) == [100, 104]


def test_references_of_flickrs_json_have_its_own_numbers(tmp_path):
    row = {"imgid": 7, "split": "test", "sentences": [{"raw": "a dog"}]}
    assert read_references(write(tmp_path / "f.json", {"images": [row]})) == {
        7: ["a dog"]
    }


def test_references_of_cocos_annotations(tmp_path):
    rows = [
        {"image_id": i, "id": n, "caption": f"{n}"} for n, i in enumerate([5, 4, 5])
    ]
    path = write(tmp_path / "captions_val2014.json", {"annotations": rows})
    assert read_references(path) == {5: ["0", "2"], 4: ["1"]}


def test_results_in_cocos_form_are_read(tmp_path):
    captions = {42: "a dog", 7: 'said "x" \u2019'}
    assert read_results(write_results(tmp_path / "results.json", captions)) == captions


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_results, {"1": "a dog"}, "is no results file"),
        (read_results, [{"image_id": "1", "caption": "a"}], "is no results file"),
        (read_results, [{"image_id": 1, "caption": "a"}] * 2, "has image 1 twice"),
        (read_references, [1], "is not Karpathy's JSON"),
        (read_references, {"annotations": [{"bbox": 1}]}, "captions_val2014.json"),
        (read_references, {"images": [{"split": "test"}]}, "'sentences'.* in a row"),
        (read_references, {"images": [{"split": "val"}]}, "no split test; it has val"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, read, content, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "file.json", content))


def test_files_that_are_not_there_or_no_json(tmp_path):
    for read in (read_results, read_references):
        with pytest.raises(UserError, match="cannot be read"):
            read(str(tmp_path / "absent.json"))
        (tmp_path / "broken.json").write_text("{")
        with pytest.raises(UserError, match="is not JSON"):
            read(str(tmp_path / "broken.json"))


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def run(capfd, *flags) -> tuple[int, str, str]:
    status = score.main(flags)
    return status, *capfd.readouterr()


def test_the_command_scores_a_results_file(karpathy, tmp_path, capfd, no_java):
    results = str(tmp_path / "results.json")
    captions = {101: "a dog number 1 0 runs", 103: "a dog number 3 1 runs"}
    write_results(tmp_path / "results.json", captions)
    flags = f"--results={results}", f"--references={karpathy}"
    status, out, err = run(capfd, *flags)
    assert status == 0
    found = json.loads(out.splitlines()[-1])
    assert found["metrics"]["bleu4_simple_tokens"] == pytest.approx(1, abs=1e-8)
    assert found["protocol"]["images"] == 2
    assert "bleu4_simple_tokens    100.00\n" in err
    assert "spice" in found["not_measured"]
    assert "spice" in err


def test_a_subset_has_to_be_asked_for_and_is_named(karpathy, tmp_path, capfd, no_java):
    results = str(tmp_path / "results.json")
    write_results(tmp_path / "results.json", {101: "a dog", 9: "a cat"})
    flags = f"--results={results}", f"--references={karpathy}"
    status, out, err = run(capfd, *flags)
    assert (status, out) == (2, "")
    assert err.startswith("error: 1 of 2 images have a caption but no references")
    assert err.count("\n") == 1
    status, _, err = run(capfd, *flags, "--subset")
    assert status == 2  # image 9 has no references in any case
    write_results(tmp_path / "results.json", {101: "a dog"})
    assert run(capfd, *flags)[0] == 2
    status, out, _ = run(capfd, *flags, "--subset")
    assert status == 0
    metrics = json.loads(out)["metrics"]
    assert metrics["bleu1_simple_tokens_partial_n1"] > 0
    assert all(name.endswith("_partial_n1") for name in metrics)
