import importlib.util
import json
import math
import os
import shutil
import subprocess

import pycocoevalcap.eval
import pycocoevalcap.spice.spice
import pytest
from pycocotools.coco import COCO

from flowtok_jax.data.clean import clean_caption
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.eval import captions
from flowtok_jax.eval.captions import PYTHON_METRICS, SIMPLE, score_captions
from flowtok_jax.runtime.errors import UserError

needs_java = pytest.mark.skipif(
    shutil.which("java") is None, reason="the Treebank tokenizer and METEOR need Java"
)

# Ours, in the manner of COCO's: capitals, full stops, clitics, quotes, hyphens.
REFERENCES = {
    391895: [
        "A man with a red helmet on a small moped on a dirt road. ",
        "Man riding a motor bike on a dirt road on the countryside.",
        "A man riding on the back of a motorcycle.",
    ],
    60623: [
        "A young girl inhales with the intent of blowing out a candle.",
        "A young girl is preparing to blow out her candle; it isn't lit.",
    ],
    483108: [
        'A man\'s "mountain bike" next to a train (red).',
        "A guy that is riding his bike next to a train",
        "A person is on a t-shirt-coloured bike, near train no. 5.",
    ],
    7: ["The kitchen is full of spices on the rack."],
}
HYPOTHESES = {
    60623: "a girl is blowing out a candle .",
    391895: "A man riding a motorcycle on a dirt road",
    7: "a kitchen with spices",
    483108: "A man's bike that is next to a train isn't moving.",
}
# By COCOEvalCap of pycocoevalcap 1.2 on Java 17.0.15, of these captions.
GOLDEN = {
    "bleu1": 0.645951843218805,
    "bleu2": 0.5369125529508245,
    "bleu3": 0.4290967471229384,
    "bleu4": 0.3044604740759927,
    "meteor": 0.2971617808417576,
    "rouge_l": 0.5463187707825067,
    "cider": 1.9768123523457068,
}
NAMES = {"Bleu_1": "bleu1", "Bleu_2": "bleu2", "Bleu_3": "bleu3", "Bleu_4": "bleu4"}
NAMES |= {"METEOR": "meteor", "ROUGE_L": "rouge_l", "CIDEr": "cider"}


class Left:
    """A scorer left out: pycocoevalcap's SPICE would download 400 MB."""

    def compute_score(self, gts, res):
        return math.nan, [math.nan] * len(gts)

    def method(self):
        return "left out"


def by_pycocoevalcap(tmp_path, monkeypatch, *left_out: str) -> dict[str, float]:
    """The scores of its own pipeline, from its own file formats."""
    rows = [(i, text) for i, texts in REFERENCES.items() for text in texts]
    annotations = [
        {"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(rows)
    ]
    content = {"images": [{"id": i} for i in REFERENCES], "annotations": annotations}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    results = [{"image_id": i, "caption": text} for i, text in HYPOTHESES.items()]
    (tmp_path / "results.json").write_text(json.dumps(results))
    coco = COCO(str(tmp_path / "annotations.json"))
    for name in left_out:
        monkeypatch.setattr(pycocoevalcap.eval, name, Left)
    evaluation = pycocoevalcap.eval.COCOEvalCap(
        coco, coco.loadRes(str(tmp_path / "results.json"))
    )
    evaluation.evaluate()
    found = {name: evaluation.eval[key] for key, name in NAMES.items()}
    return {name: value for name, value in found.items() if not math.isnan(value)}


@pytest.fixture
def processes(monkeypatch):
    """All processes that are started."""
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            started.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    return started


@needs_java
def test_metrics_are_those_of_pycocoevalcap(tmp_path, monkeypatch, capfd, processes):
    wanted = by_pycocoevalcap(tmp_path, monkeypatch, "Spice", "Meteor")
    assert set(wanted) == set(PYTHON_METRICS)
    assert capfd.readouterr().out.count("\n") > 10  # all of this is kept away below
    scores = score_captions(HYPOTHESES, REFERENCES)
    assert scores.metrics == pytest.approx(GOLDEN, rel=1e-9)
    assert wanted == pytest.approx({k: GOLDEN[k] for k in wanted}, rel=1e-9)
    assert set(scores.not_measured) == {"spice"}
    assert "stanford-corenlp-3.6.0.jar" in scores.not_measured["spice"]
    assert scores.protocol["tokens"] == "ptb"
    assert scores.protocol["images"] == 4
    assert scores.protocol["references"] == 9
    assert capfd.readouterr() == ("", "")
    assert [p.args[0] for p in processes].count("java") >= 4
    assert all(p.returncode is not None for p in processes)  # ended and waited for
    json.dumps(scores._asdict())


@needs_java
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_meteor_is_that_of_pycocoevalcap(tmp_path, monkeypatch):
    assert by_pycocoevalcap(tmp_path, monkeypatch, "Spice") == pytest.approx(GOLDEN)


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def test_without_java_the_python_metrics_say_how_words_were_split(no_java, capfd):
    scores = score_captions(HYPOTHESES, REFERENCES)
    assert set(scores.metrics) == {name + SIMPLE for name in PYTHON_METRICS}
    # The tokenizers differ in brackets and "no.", which moves a reference's length.
    found = {name: scores.metrics[name + SIMPLE] for name in PYTHON_METRICS}
    wanted = {name: GOLDEN[name] for name in PYTHON_METRICS}
    assert found == pytest.approx(wanted, rel=0.04)
    assert found != pytest.approx(wanted, rel=1e-3)
    assert set(scores.not_measured) == set(captions.METRICS)
    assert all("Java is not installed" in why for why in scores.not_measured.values())
    assert scores.protocol["tokens"] == "simple"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("works", ["never", "for -version"])
def test_a_java_that_fails_is_no_crash(tmp_path, monkeypatch, works):
    status = "exit 1" if works == "never" else '[ "$1" = -version ]'
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho 'cannot reserve the heap' >&2\n{status}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = score_captions(HYPOTHESES, REFERENCES)
    assert set(scores.metrics) == {name + SIMPLE for name in PYTHON_METRICS}
    if works == "never":
        assert "`java -version` fails" in scores.not_measured["meteor"]
    else:
        assert "cannot reserve the heap" in scores.not_measured["meteor"]


@needs_java
def test_meteor_that_dies_is_a_reason_and_the_others_are_done(tmp_path, monkeypatch):
    (tmp_path / "java").write_text(
        "#!/bin/sh\n"
        'case "$*" in *meteor*) echo "cannot reserve the heap" >&2; exit 1;; esac\n'
        f'exec {shutil.which("java")} "$@"\n'
    )
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    scores = score_captions(HYPOTHESES, REFERENCES)
    assert set(scores.metrics) == set(PYTHON_METRICS)
    assert "cannot reserve the heap" in scores.not_measured["meteor"]


def test_without_the_extra_nothing_is_measured_and_it_says_so(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "pycocoevalcap" else find(name),
    )
    scores = score_captions(HYPOTHESES, REFERENCES)
    assert scores.metrics == {}
    assert set(scores.not_measured) == set(captions.METRICS)
    assert "flowtok_jax[eval]" in scores.not_measured["cider"]


def test_a_caption_equal_to_a_reference_is_worth_everything(no_java):
    references = {
        1: ["two dogs", "A man rides a red motorcycle."],
        2: ["A kitchen full of white plates"],
    }
    hypotheses = {
        1: "A man rides a red motorcycle",
        2: "a kitchen full of white plates",
    }
    metrics = score_captions(hypotheses, references).metrics
    for name in ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"):
        assert metrics[name + SIMPLE] == pytest.approx(1, abs=1e-8)
    alone = {1: references[1][1:], 2: references[2]}
    cider = score_captions(hypotheses, alone).metrics["cider" + SIMPLE]
    assert cider == pytest.approx(10)  # all n-grams of both at a cosine of 1, times 10


def test_bleu_and_rouge_by_hand(no_java):
    metrics = score_captions({1: "a dog runs"}, {1: ["a dog runs fast"]}).metrics
    # All words and pairs are right; three words against four: exp(1 - 4 / 3).
    assert metrics["bleu1" + SIMPLE] == pytest.approx(math.exp(-1 / 3), rel=1e-6)
    assert metrics["bleu2" + SIMPLE] == pytest.approx(math.exp(-1 / 3), rel=1e-6)
    # Precision 1, recall 3/4, weighed with beta 1.2.
    wanted = (1 + 1.2**2) * 0.75 / (0.75 + 1.2**2)
    assert metrics["rouge_l" + SIMPLE] == pytest.approx(wanted)


@pytest.mark.parametrize("value", [0.205, None])
def test_spice_is_measured_where_its_parts_are_there(monkeypatch, value):
    class Spice:
        def compute_score(self, gts, res):
            if value is None:
                raise subprocess.CalledProcessError(
                    1, ["java", "-jar", "spice-1.0.jar"]
                )
            return value, [{}] * len(gts)

    monkeypatch.setattr(captions, "SPICE_JARS", ("spice-1.0.jar",))
    monkeypatch.setattr(captions, "SPICE_FOLDER", ".")
    monkeypatch.setattr(pycocoevalcap.spice.spice, "Spice", Spice)
    tokens = {0: ["a dog"]}, {0: ["a dog"]}
    with captions._muted() as log:
        metrics, lacking = captions._measure(*tokens, ["spice"], "", log)
    if value is None:
        assert metrics == {}
        assert "'-jar', 'spice-1.0.jar'" in lacking["spice"]
    else:
        assert (metrics, lacking) == ({"spice": value}, {})


def test_cider_of_one_image_is_not_measured(no_java):
    scores = score_captions({1: "a dog"}, {1: ["a dog"]})
    assert "cider" + SIMPLE not in scores.metrics
    assert "there is one" in scores.not_measured["cider" + SIMPLE]


def test_empty_captions_and_line_breaks_shift_no_other_caption(no_java):
    references = {i: [f"number {i} of a red thing", "x"] for i in range(4)}
    hypotheses = {i: f"number {i} of\ra red\u2028thing" for i in range(4)}
    metrics = score_captions(hypotheses, references).metrics
    assert metrics["bleu4" + SIMPLE] == pytest.approx(1, abs=1e-8)
    hypotheses |= {1: "", 3: " "}
    metrics = score_captions(hypotheses, references).metrics
    assert metrics["rouge_l" + SIMPLE] == pytest.approx(0.5)


@needs_java
def test_the_treebank_tokens_of_odd_captions_stay_with_their_images():
    texts = {0: ["", "a dog"], 1: ["it isn't\r a dog's  bone", ""], 2: ["..."], 3: [""]}
    lines = {i: [captions._line(t) for t in found] for i, found in texts.items()}
    with captions._muted() as log:
        tokens = captions._ptb_tokens(lines, log)
    dog = "it is n't a dog 's bone"
    assert tokens == {0: ["", "a dog"], 1: [dog, ""], 2: [""], 3: [""]}


PLAIN = (
    "A man's dog isn't here; it's on the sofa.",
    "Two t-shirts, 3.5 metres of well-worn rope and a clock at 5 o'clock?",
    "The red flag can't be seen: they cannot look, we're told!",
)


@needs_java
def test_simple_tokens_are_the_treebanks_on_plain_captions():
    lines = {0: list(PLAIN)}
    with captions._muted() as log:
        assert captions._simple_tokens(lines) == captions._ptb_tokens(lines, log)


def test_simple_tokens_of_plain_captions():
    words = captions._simple_tokens({0: list(PLAIN)})[0]
    assert words[0] == "a man 's dog is n't here it 's on the sofa"


def test_what_is_printed_comes_back_when_all_is_done(capfd):
    with captions._muted() as log:
        subprocess.run(["sh", "-c", "echo hidden; echo too >&2"], check=True)
        print("hidden")  # noqa: T201
        assert captions._last_line(log) == " (too)"
        captions._attempt(subprocess.run, ["sh", "-c", "echo on >&2"], log=log)
        assert captions._last_line(log) == " (on)"  # and nothing of before
    subprocess.run(["sh", "-c", "echo seen; echo this >&2"], check=True)
    print("again")  # noqa: T201
    seen = capfd.readouterr()
    assert sorted(seen.out.split()) == ["again", "seen"]
    assert seen.err == "this\n"


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ({}, {}, "no captions to score"),
        (
            {1: "a", 2: "b"},
            {1: ["a"]},
            "1 of 2 images have a caption but no references",
        ),
        ({1: "a"}, {1: ["a"], 5: ["b"]}, "1 of 2 images have references .* first 5"),
        ({1: "a"}, {1: []}, "1 images have no list of references"),
        ({1: "a"}, {1: "a dog"}, "1 images have no list of references"),
    ],
)
def test_captions_that_cannot_be_scored(hypotheses, references, message):
    with pytest.raises(UserError, match=message):
        score_captions(hypotheses, references)


@pytest.mark.parametrize(
    ("caption", "references", "exact", "f1"),
    [
        ("a red dog", ["a red dog"], 1, 1),
        ("A  Red&nbsp;dog", ["cat", "a red dog"], 1, 1),  # cleaned as a vocabulary does
        ("dog : red , small", ["dog: red, small"], 1, 1),  # spaces are not words
        ("dog red a", ["a red dog"], 0, 1),  # a bag has no order
        ("a red", ["a red dog"], 0, 0.8),
        ("red red dog", ["a red dog"], 0, 2 / 3),  # the second red is not shared
        ("a red", ["a dog runs here", "red"], 0, 2 / 3),  # the better of 1/3 and 2/3
        ("keycap *", ["keycap #"], 0, 0.5),
        ("", ["a dog"], 0, 0),
        ("", [" "], 1, 1),
    ],
)
def test_words_are_scored_as_by_hand(caption, references, exact, f1):
    found = captions.word_scores([caption], [references])
    assert found == {"exact_match": exact, "word_f1": pytest.approx(f1)}


def test_scores_of_words_are_means_over_captions():
    found = captions.word_scores(["a dog", "a cat"], [["a dog"], ["the dog"]])
    assert found == {"exact_match": 0.5, "word_f1": 0.5}


def test_words_are_those_of_a_vocabulary_trained_on_captions():
    texts = ["Woman: medium-dark skin, it's no. 5!?", "keycap #*", "p\u00eacheur_2"]
    for text in texts:
        vocabulary = Vocabulary.train([text], vocab_size=50, context=16)
        splitter = vocabulary.tokenizer.pre_tokenizer
        words = [word for word, _ in splitter.pre_tokenize_str(clean_caption(text))]
        assert captions.PLAIN_WORD.findall(clean_caption(text)) == words
