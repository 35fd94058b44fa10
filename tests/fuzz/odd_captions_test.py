"""Captions of any bytes and JSON values, read whole or by their first line."""

from hypothesis import strategies as st

from flowtok_jax.data.captions import READINGS, SPACES, CaptionOptions
from flowtok_jax.data.records import BadRecord
from tests.fuzz.bounds import check_bad, odd, opened
from tests.fuzz.odd_folders_test import json_values
from tests.fuzz.strategies import caption_bytes, words

READERS = tuple(CaptionOptions(reading) for reading in READINGS)
readers = st.sampled_from(READERS)
lines = st.text(st.sampled_from("ab \t\n\r\v\x00\ufeff\u200b\u2028\u3164é日\ud83d"))


def check(text: str, reader: CaptionOptions) -> None:
    """Checks a caption: nothing invisible at its ends, one line where one is wanted."""
    assert "\0" not in text
    assert "\ufeff" not in text
    assert text == text.strip(SPACES)
    assert reader.clean(text) == text
    if reader.reading == "first_line":
        assert not set(text) & {"\n", "\r"}


@odd(300, data=caption_bytes | st.binary(max_size=40), reader=readers)
def test_any_bytes_are_a_caption_or_named(data, reader):
    try:
        check(reader.decode(data, "it"), reader)
    except BadRecord as bad:
        check_bad(bad)


@odd(300, value=words | lines | st.lists(lines | words) | json_values, reader=readers)
def test_any_value_of_json_is_captions_or_named(value, reader):
    try:
        found = reader.texts(value, "it")
    except BadRecord as bad:
        check_bad(bad)
        return
    assert found
    for text in found:
        assert text
        text.encode()
        check(text, reader)


@odd(200, row=st.dictionaries(st.sampled_from(("text", "caption", "x")), json_values))
def test_any_row_has_one_caption_two_or_none(row):
    for reader in READERS:
        rivals = reader.rivals(row)
        assert set(rivals) <= set(row)
        assert len(rivals) != 1
        reader.pick(row)


names = st.text(max_size=6) | st.lists(st.text(max_size=6)).map(tuple)


@odd(100, reading=st.text(max_size=5), keys=names, extensions=names)
def test_options_of_any_value_are_taken_or_refused(reading, keys, extensions):
    for chosen in (reading, *READINGS):
        options = opened(CaptionOptions, chosen, keys, extensions)
        if options is not None:
            assert all(name.strip() for name in (*options.keys, *options.extensions))
