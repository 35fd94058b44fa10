"""Caption metrics as the COCO server computes them, by pycocoevalcap.

BLEU-1..4 (Papineni et al. 2002), METEOR (Denkowski and Lavie 2014), ROUGE-L (Lin 2004),
CIDEr-D (Vedantam et al. 2015) and SPICE (Anderson et al. 2016), as fractions; papers
print them times 100. Captions are split by Stanford's Penn Treebank tokenizer, which
needs Java, as METEOR and SPICE do. Without Java the others are computed of words split
in Python, and their names say so (`bleu4_simple_tokens`).

`word_scores` needs neither: short captions, such as names, have few pairs of words that
BLEU could count.
"""

import collections
import contextlib
import importlib.metadata
import importlib.util
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from flowtok_jax.data.clean import clean_caption
from flowtok_jax.runtime.errors import UserError

PACKAGE = "pycocoevalcap"
BLEU = ("bleu1", "bleu2", "bleu3", "bleu4")
PYTHON_METRICS = (*BLEU, "rouge_l", "cider")
METRICS = (*PYTHON_METRICS, "meteor", "spice")
SIMPLE = "_simple_tokens"
SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
SPICE_FOLDER = "lib"  # of pycocoevalcap/spice
JAVA_PATIENCE = 60  # seconds to say its version

Captions = dict[int, list[str]]  # as pycocoevalcap takes them
CLITIC = r"'(?:s|re|ve|ll|d|m)"
SPLIT_OFF = re.compile(rf"(?<=\w)(n't|{CLITIC})\b")
# What a vocabulary trained on captions takes for a word.
PLAIN_WORD = re.compile(r"\w+|[^\w\s]+")
WORD = re.compile(rf"(?<!\S){CLITIC}(?!\S)|\w+(?:[-.&'/]\w+)*|[$%]")


class Scores(NamedTuple):
    """Metrics of captions, with what could not be measured and why, and the tools.

    Attributes:
        metrics: of METRICS, fractions; names end in `_simple_tokens` where words were
            split in Python.
        not_measured: name of a metric -> reason.
        protocol: versions, tokenizer and counts.
    """

    metrics: dict[str, float]
    not_measured: dict[str, str]
    protocol: dict[str, Any]

    def renamed(self, suffix: str) -> "Scores":
        """Appends a suffix to the names of the metrics."""
        metrics = {name + suffix: value for name, value in self.metrics.items()}
        return self._replace(metrics=metrics)


class _Failure(Exception):  # noqa: N818 (a reason, no error)
    """A reason why a metric cannot be measured."""


def score_captions(
    hypotheses: Mapping[int, str], references: Mapping[int, Sequence[str]]
) -> Scores:
    """Scores one caption an image against the captions that people wrote.

    A metric whose tools are missing is in `not_measured`. Nothing is downloaded.

    Raises:
        UserError: if images of the two are not the same, or have no captions.
    """
    _check(hypotheses, references)
    numbers = {image: number for number, image in enumerate(hypotheses)}
    refs = {n: [_line(t) for t in references[i]] for i, n in numbers.items()}
    hyps = {n: [_line(hypotheses[i])] for i, n in numbers.items()}
    protocol: dict[str, Any] = {
        "images": len(hyps),
        "references": sum(map(len, refs.values())),
    }
    if importlib.util.find_spec(PACKAGE) is None:
        reason = f"{PACKAGE} is not installed: pip install 'flowtok_jax[eval]'"
        return Scores({}, dict.fromkeys(METRICS, reason), protocol)
    protocol[PACKAGE] = importlib.metadata.version(PACKAGE)
    with _muted() as log:
        try:
            protocol["java"] = _java_version()
            tokens = _ptb_tokens(refs, log), _ptb_tokens(hyps, log)
        except _Failure as failure:
            tokens = _simple_tokens(refs), _simple_tokens(hyps)
            metrics, lacking = _measure(*tokens, PYTHON_METRICS, SIMPLE, log)
            lacking = dict.fromkeys(METRICS, str(failure)) | lacking
            protocol["tokens"] = "simple"
        else:
            metrics, lacking = _measure(*tokens, METRICS, "", log)
            protocol["tokens"] = "ptb"
    return Scores(metrics, lacking, protocol)


def word_scores(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Scores captions by their words alone: exact_match and word_f1.

    A caption matches exactly if it has the words of a reference in their order. Its F1
    is 2 c / (a + b) with the reference that gives the most: a and b are the numbers of
    words of both, and c of those that they share, a word as often as both have it. Both
    are means over captions.

    Words are those of a vocabulary trained on captions: after `clean_caption` (white
    space, HTML entities, typographic characters, lower case) runs of letters and
    digits, and runs of other characters, so that spaces around punctuation are nothing.
    """
    exact = []
    f1 = []
    for caption, others in zip(hypotheses, references, strict=True):
        words = _words(caption)
        known = [_words(other) for other in others]
        exact.append(words in known)
        f1.append(max(_word_f1(words, other) for other in known))
    return {"exact_match": float(np.mean(exact)), "word_f1": float(np.mean(f1))}


def _words(caption: str) -> list[str]:
    return PLAIN_WORD.findall(clean_caption(caption))


def _word_f1(words: list[str], others: list[str]) -> float:
    shared = collections.Counter(words) & collections.Counter(others)
    # Two captions without words are the same.
    total = len(words) + len(others)
    return 2 * shared.total() / total if total else 1.0


def _check(
    hypotheses: Mapping[int, str], references: Mapping[int, Sequence[str]]
) -> None:
    if not hypotheses:
        raise UserError("no captions to score; expected one an image")
    for what, some, others in (
        ("have a caption but no references", hypotheses, references),
        ("have references but no caption", references, hypotheses),
    ):
        lacking = [image for image in some if image not in others]
        if lacking:
            raise UserError(
                f"{len(lacking)} of {len(some)} images {what}, the first {lacking[0]}; "
                "expected captions and references of the same images"
            )
    bare = [i for i, texts in references.items() if isinstance(texts, str) or not texts]
    if bare:
        raise UserError(
            f"{len(bare)} images have no list of references, the first {bare[0]}; "
            "expected at least one reference an image"
        )


def _line(caption: str) -> str:
    """Puts the caption on one line: a second one would shift all later ones in Java."""
    return " ".join(caption.split())


def _simple_tokens(captions: Captions) -> Captions:
    """Splits lower-case words from punctuation, 's and n't as the Treebank does.

    On captions without brackets and abbreviations both splits are the same.
    """

    def split(text: str) -> str:
        text = text.lower().replace("\u2019", "'").replace("cannot", "can not")
        return " ".join(WORD.findall(SPLIT_OFF.sub(r" \1 ", text)))

    return {image: [split(t) for t in texts] for image, texts in captions.items()}


def _ptb_tokens(captions: Captions, log: IO[bytes]) -> Captions:
    """Returns lower-case Penn Treebank tokens without punctuation."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # Empty lines at the end would be lost.
    rows = {
        image: [{"caption": text} for text in texts if text]
        for image, texts in captions.items()
    }
    rows = {image: texts for image, texts in rows.items() if texts}
    found = _attempt(PTBTokenizer().tokenize, rows, log=log) if rows else {}
    counts = {image: len(texts) for image, texts in rows.items()}
    if {image: len(texts) for image, texts in found.items()} != counts:
        raise _Failure(f"the Treebank tokenizer failed{_last_line(log)}")
    tokens = {image: iter(texts) for image, texts in found.items()}
    return {
        image: [next(tokens[image]) if text else "" for text in texts]
        for image, texts in captions.items()
    }


def _java_version() -> str:
    if shutil.which("java") is None:
        raise _Failure(
            "Java is not installed, which the Treebank tokenizer, METEOR and SPICE "
            "need: install a JRE, such as Debian's default-jre-headless"
        )
    try:
        found = subprocess.run(
            ["java", "-version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=JAVA_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise _Failure(f"`java -version` fails: {_one_line(error)}") from error
    text = found.stdout.decode(errors="replace")
    version = re.search(r'version "([^"]+)"', text)
    return version[1] if version else text.partition("\n")[0]


def _measure(
    refs: Captions, hyps: Captions, chosen: Sequence[str], suffix: str, log: IO[bytes]
) -> tuple[dict[str, float], dict[str, str]]:
    """Computes chosen metrics, and why some are lacking, by name and suffix."""
    metrics: dict[str, float] = {}
    lacking: dict[str, str] = {}
    for names, measure in MEASURES.items():
        if not set(names) <= set(chosen):
            continue
        names = [name + suffix for name in names]
        try:
            values = _attempt(measure, refs, hyps, log=log)
        except _Failure as failure:
            lacking |= dict.fromkeys(names, str(failure))
        else:
            metrics |= dict(zip(names, map(float, values), strict=True))
    return metrics, lacking


def _attempt(function: Callable, *arguments: Any, log: IO[bytes]) -> Any:
    log.seek(0)
    log.truncate()
    try:
        return function(*arguments)
    except _Failure:
        raise
    except Exception as error:  # of a Java process everything may fail
        reason = f"{type(error).__name__}: {_one_line(error)}{_last_line(log)}"
        raise _Failure(reason) from error


@contextlib.contextmanager
def _muted() -> Iterator[IO[bytes]]:
    """Sends what is printed, by other processes too, to a file and not the terminal."""
    with contextlib.ExitStack() as stack:
        # Without a buffer: other processes write to it as well, where it was left.
        log = stack.enter_context(tempfile.TemporaryFile("w+b", 0))
        for stream in (sys.stdout, sys.stderr):  # of what was printed before
            stream.flush()
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        for stream in (1, 2):
            saved = os.dup(stream)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, stream)
            os.dup2(log.fileno(), stream)
        yield log


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _last_line(log: IO[bytes]) -> str:
    """Returns the last line printed, in which a Java process says why it failed."""
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line]
    return f" ({lines[-1].strip()[:200]})" if lines else ""


def _bleu(refs: Captions, hyps: Captions) -> Sequence[float]:
    from pycocoevalcap.bleu.bleu import Bleu

    return Bleu(4).compute_score(refs, hyps)[0]


def _rouge(refs: Captions, hyps: Captions) -> Sequence[float]:
    from pycocoevalcap.rouge.rouge import Rouge

    return [Rouge().compute_score(refs, hyps)[0]]


def _cider(refs: Captions, hyps: Captions) -> Sequence[float]:
    from pycocoevalcap.cider.cider import Cider

    if len(refs) < 2:
        raise _Failure(
            "CIDEr weighs words by how few of the images have them, and there is one"
        )
    return [Cider().compute_score(refs, hyps)[0]]


def _meteor(refs: Captions, hyps: Captions) -> Sequence[float]:
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    java = scorer.meteor_p
    try:
        return [scorer.compute_score(refs, hyps)[0]]
    finally:
        if scorer.lock.locked():  # left so by an error; its __del__ waits for it
            scorer.lock.release()
        java.kill()
        java.wait()
        with contextlib.suppress(BrokenPipeError):  # of what it never read
            java.stdin.close()
        with java.stdout, java.stderr:
            os.write(2, java.stderr.read())  # to where the others print it


def _spice(refs: Captions, hyps: Captions) -> Sequence[float]:
    import pycocoevalcap.spice

    folder = pathlib.Path(pycocoevalcap.spice.__file__).parent / SPICE_FOLDER
    missing = [name for name in SPICE_JARS if not (folder / name).is_file()]
    if missing:  # pycocoevalcap would download them: 400 MB
        raise _Failure(
            f"SPICE needs {' and '.join(missing)} of Stanford CoreNLP 3.6.0 in "
            f"the folder spice/lib of {PACKAGE}, and Java 8 or 11"
        )
    from pycocoevalcap.spice.spice import Spice

    return [Spice().compute_score(refs, hyps)[0]]


MEASURES: dict[tuple[str, ...], Callable[[Captions, Captions], Sequence[float]]] = {
    BLEU: _bleu,
    ("rouge_l",): _rouge,
    ("cider",): _cider,
    ("meteor",): _meteor,
    ("spice",): _spice,
}
