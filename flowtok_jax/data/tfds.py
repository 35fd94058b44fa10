"""Records of data sets of TensorFlow Datasets, prepared on disk as ArrayRecord.

Reading needs no TensorFlow. For coco_captions the splits are Karpathy's: train,
restval, val and test, with five captions an image.
"""

import contextlib
import io
import re
from typing import Any

from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.records import BadRecord, Record, Records
from flowtok_jax.runtime.errors import UserError

# A version after the name, NAME:1.1.0, begins with a digit, a split does not.
NAME_AND_SPLIT = re.compile(r"(.+?):([a-zA-Z].*)")
SEVERAL = "captions"  # feature of coco_captions; others have one of the usual keys


class Tfds(Records):
    """Records of NAME:SPLIT; splits are joined by `+` and cut by `[...]`, as in TFDS.

    Raises:
        UserError: if the data set or the split does not exist, or is not prepared.
    """

    def __init__(
        self,
        arguments: str,
        captions: CaptionOptions = CaptionOptions(),  # noqa: B008 (immutable)
    ):
        import tensorflow_datasets as tfds  # slow to import, and needed only here

        self.arguments = arguments
        self._captions = captions
        found = NAME_AND_SPLIT.fullmatch(arguments)
        if not found:
            raise UserError(f"source tfds:{arguments}; expected tfds:NAME:SPLIT")
        name, split = found.groups()
        cure = (
            "prepare it once, where TensorFlow is installed, with `tfds build "
            f"{name} --file_format=array_record`; TFDS_DATA_DIR says where it lies"
        )
        try:
            # It prints a banner on TensorFlow, which reading does not need.
            with contextlib.redirect_stderr(io.StringIO()):
                builder = tfds.builder(name)
                # The files' bytes: images are decoded by data/images.py alone.
                decoders = {"image": tfds.decode.SkipDecoding()}
                self._rows = builder.as_data_source(split, decoders=decoders)
        except Exception as error:  # of many kinds, with a page of advice
            reason = next(iter(str(error).strip().splitlines()), "")
            raise UserError(
                f"source tfds:{arguments} cannot be opened ({type(error).__name__}: "
                f"{reason}); {cure}"
            ) from error

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Tfds({self.arguments!r}, {len(self)} records)"

    def __getitem__(self, index: int) -> Record:
        row = self._rows[index]
        name = row.get("image/filename", b"")
        name = name.decode(errors="replace") or f"{self.arguments}:{index}"
        if "image" not in row:
            raise BadRecord("missing_image", name)
        # The number by which captions of COCO are scored.
        known = {"image_id": int(row["image/id"])} if "image/id" in row else {}
        record = Record(name, image=row["image"], metadata=known, key=str(index))
        return record.with_captions(self._texts(row, name), ())

    def _texts(self, row: dict[str, Any], name: str) -> tuple[str, ...]:
        columns = (SEVERAL, *self._captions.keys)
        found = next((row[column] for column in columns if column in row), None)
        if isinstance(found, dict):  # columns of a tfds Sequence, as in coco_captions
            found = found.get("text")
        texts = [found] if isinstance(found, bytes) else list(found or ())
        if not texts:
            raise BadRecord("missing_caption", name)
        return tuple(self._captions.decode(text, name) for text in texts)
