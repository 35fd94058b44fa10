"""Prompts of flags, files and Python, and seeds."""

import functools

import jaxtyping
import numpy as np
import pytest
from hypothesis import strategies as st

from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.modes.prompts import collect_prompts
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.batches import RowPrograms
from flowtok_jax.runtime.errors import UserError
from tests import tiny
from tests.fuzz.bounds import check_error, fresh, odd, opened
from tests.fuzz.strategies import caption_bytes, plain_captions, typed_names, words

CONTEXT = 8


class Kept(RowPrograms):
    """Programs that keep what they are given, and compute nothing of it."""

    def get(self, function, params, inputs, **static):
        side = function.__self__.nets.tokenizer.image_size
        shape = (CONTEXT,)
        if function.__name__ == "text_to_image":
            shape = (side, side, 3)

        def program(params, batch, key, numbers):
            del params, key, numbers
            self.inputs = np.asarray(batch)
            return np.zeros((len(batch), *shape), "f4" if shape[1:] else "i4")

        return program


class Unrun(FlowTok):
    """A pipeline that checks what it is given, keeps it, and draws nothing of it."""

    def __init__(self, *args):
        super().__init__(*args)
        self._compiled = Kept()

    @property
    def inputs(self) -> np.ndarray:
        return self._compiled.inputs


@functools.cache
def unrun() -> Unrun:
    vocabulary = Vocabulary.train(["a red circle", "a blue square"], 50, CONTEXT)
    return Unrun(tiny.nets(), {"t2i": {}, "i2t": {}}, vocabulary)


@pytest.fixture
def untyped(monkeypatch):
    """Calls without the type checks of tests, which users do not have either."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def check_prompts(prompts: list[str] | None) -> None:
    """Checks that prompts can be drawn and printed."""
    if prompts is None:
        return
    assert prompts
    for prompt in prompts:
        assert prompt.strip() == prompt != ""


@odd(200, text=st.text(max_size=60) | st.text(st.sampled_from("ab;&amp# \n\\\"'")))
def test_any_text_of_prompts_is_split_or_refused(text):
    check_prompts(opened(collect_prompts, [], text, None))


@odd(100, prompts=st.lists(plain_captions, min_size=1, max_size=8), end=st.booleans())
def test_a_file_of_prompts_has_one_a_line(prompts, end):
    with fresh() as root:
        path = root / "prompts.txt"
        for newline in ("\n", "\r\n"):
            text = newline.join(prompts) + newline * end
            for mark in (b"", b"\xef\xbb\xbf"):
                path.write_bytes(mark + text.encode())
                assert collect_prompts([], None, str(path)) == prompts


@odd(150, data=caption_bytes | st.binary(max_size=200), name=typed_names)
def test_a_file_of_any_bytes_is_read_or_refused(data, name):
    with fresh() as root:
        (root / name).write_bytes(data)
        check_prompts(opened(collect_prompts, [], None, str(root / name)))


@odd(60, name=st.text(max_size=20).filter(lambda x: "\n" not in x and "\r" not in x))
def test_a_file_of_prompts_that_is_none_is_refused(name):
    if name:
        with pytest.raises(UserError) as error:
            collect_prompts([], None, f"/proc/self/no/{name}")
        check_error(error.value)


elements = st.one_of(
    words,
    st.text(max_size=9),
    st.just("caf\ud83d"),
    st.none(),
    st.floats(),
    st.integers(),
    st.binary(max_size=9),
    st.lists(words, max_size=2),
)
prompt_values = st.one_of(
    words,
    st.none(),
    st.integers(),
    st.lists(elements, max_size=3),
    st.lists(words, max_size=3).map(tuple),
    st.lists(words, max_size=3).map(np.array),
    st.lists(words, max_size=3).map(lambda x: np.array(x, object)),
    st.lists(words, min_size=4, max_size=4).map(lambda x: np.array(x).reshape(2, 2)),
    st.lists(st.floats(), max_size=3).map(np.array),
    st.lists(elements, max_size=3).map(iter),
    st.sets(words, max_size=3),
    st.dictionaries(words, words, max_size=3),
)


@pytest.mark.usefixtures("untyped")
@odd(200, prompts=prompt_values)
def test_any_value_for_prompts_is_drawn_or_refused(prompts):
    drawn = opened(unrun().text_to_image, prompts)
    if drawn is not None:
        assert len(drawn) == len(unrun().inputs) > 0


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "make",
    [list, tuple, np.array, iter, lambda texts: (text for text in texts)],
    ids=["list", "tuple", "array", "iterator", "generator"],
)
def test_prompts_of_every_kind_of_sequence_are_drawn(make):
    texts = ["a red circle", "a blue square"]
    assert len(unrun().text_to_image(make(texts))) == 2
    wanted = unrun().vocabulary.encode(texts)
    np.testing.assert_array_equal(unrun().inputs, wanted)


numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from((0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64)),
    st.floats(),
    st.none(),
    st.booleans(),
    words,
    st.integers(0, 2**32 - 1).map(np.int64),
    st.integers(0, 255).map(np.uint8),
)


@pytest.mark.usefixtures("untyped")
@odd(100, seed=numbers)
def test_any_value_for_a_seed_is_taken_or_refused(seed):
    drawn = opened(unrun().text_to_image, ["a red circle"], seed) is not None
    is_whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    assert drawn == (is_whole and 0 <= seed < 2**32)


SIDE = 16  # of the tiny networks
arrays = st.builds(
    lambda shape, kind, fill: np.full(shape, fill, np.float64).astype(kind),
    st.lists(st.integers(0, 3) | st.just(SIDE), max_size=5),
    st.sampled_from((np.uint8, np.float32, np.float16, np.int64, bool, object)),
    st.sampled_from((0, 0.5, 1, 0.25, -1, 255, 1e9)),
)
shaped = st.builds(
    lambda count, kind, fill: np.full((count, SIDE, SIDE, 3), fill).astype(kind),
    st.integers(0, 3),
    st.sampled_from((np.uint8, np.float32, np.float16, complex, object, str)),
    st.sampled_from((0, 0.5, 1, -1, 1e9, np.nan, np.inf)),
)
paths = st.lists(typed_names | st.text(max_size=9) | st.none(), max_size=3)


@pytest.mark.usefixtures("untyped")
@pytest.mark.filterwarnings("ignore:.*cast:RuntimeWarning")
@odd(200, images=st.one_of(st.none(), words, arrays, shaped, paths, st.binary()))
def test_any_array_for_images_is_described_or_refused(images):
    texts = opened(unrun().image_to_text, images)
    if texts is not None:
        assert len(texts) == len(unrun().inputs) > 0
        assert np.isfinite(unrun().inputs).all()
