"""Trained weights with programs that need JAX only: StableHLO, made by jax.export.

exported.json      what each program takes, gives, and was made with
NAME.exported      a program for any number of rows, read by jax.export.deserialize
weights/           the parameters and the vocabulary, as `pretrained.save` writes them

A program's first argument are the parameters, {GROUP: {NAME: array}} as the files of
weights/ hold them. As constants they would stand in each program that uses their group,
and of the largest model be gigabytes that every compilation goes through.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from flowtok_jax.array_types import Params
from flowtok_jax.data.vocabulary import PAD_ID, Vocabulary
from flowtok_jax.runtime.errors import UserError, reason_of
from flowtok_jax.runtime.files import Place, new_directory, write_bytes, write_json

MANIFEST = "exported.json"
PLATFORMS = ("cpu", "cuda", "tpu")  # as jax.export names them


class RowProgram(NamedTuple):
    """A function of rows, with what it is run with.

    Attributes:
        function: of parameters by group, an input of rows, a key and the rows' numbers;
            `options` is a keyword argument.
        params: the groups of parameters that it uses.
        row: an input of one row, for its shape and type.
        options: options of sampling, fixed in the program.
    """

    function: Callable
    params: Params
    row: np.ndarray
    options: Any


def write_programs(
    directory: Place,
    programs: Sequence[RowProgram],
    vocabulary: Vocabulary,
    platforms: Sequence[str],
    save: Callable[[Place], None],
) -> None:
    """Writes programs with the weights that they take, whole or not at all.

    Args:
        platforms: kinds of devices that the programs can run on.
        save: writes the weights into a directory.

    Raises:
        UserError: where the directory has something in it already, a program cannot be
            made for any number of rows or on a platform, or a package is missing.
    """
    if not programs:
        raise UserError(
            f"nothing to export to {directory}: these weights have no flow; train "
            "stage t2i or i2t first"
        )
    with new_directory(directory) as part:
        described = {}
        for program in programs:
            name = program.function.__name__
            made = _export(name, program, platforms)
            write_bytes(part / f"{name}.exported", _serialize(made))
            described[name] = _describe(program, made)
        start = vocabulary.start_id
        manifest = {
            "jax": jax.__version__,
            "platforms": list(platforms),
            "captions": {
                "length": vocabulary.context,
                "start": [] if start is None else [start],
                "end": [vocabulary.end_id],
                "pad": PAD_ID,
                "silent": sorted(vocabulary.silent_ids),
            },
            "programs": described,
        }
        write_json(part / MANIFEST, manifest)
        save(part / "weights")


def _export(
    name: str, program: RowProgram, platforms: Sequence[str]
) -> export.Exported:
    """Lowers a program for any number of rows.

    Raises:
        UserError: with the reason why that cannot be done.
    """

    def run(params: Params, inputs: jax.Array, seed: jax.Array, rows: jax.Array):
        nested = {group: unflatten_dict(p, sep="/") for group, p in params.items()}
        key = jax.random.key_data(jax.random.key(seed))
        return program.function(nested, inputs, key, rows, options=program.options)

    (rows,) = export.symbolic_shape("b")
    flat = {group: flatten_dict(p, sep="/") for group, p in program.params.items()}
    arguments = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), flat),
        jax.ShapeDtypeStruct((rows, *program.row.shape[1:]), program.row.dtype),
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    run.__name__ = name  # what profiles show
    try:
        return export.export(jax.jit(run), platforms=tuple(platforms))(*arguments)
    except Exception as error:  # tracing and lowering raise what they like
        raise UserError(
            f"{name} cannot be exported for any number of rows on "
            f"{', '.join(platforms)}: {reason_of(error)}"
        ) from error


def _serialize(made: export.Exported) -> bytes:
    try:
        return bytes(made.serialize())
    except ImportError as error:
        raise UserError(
            "exporting needs flatbuffers, which is not installed; run "
            "`pip install 'flowtok_jax[export]'`"
        ) from error


def _describe(program: RowProgram, made: export.Exported) -> dict[str, Any]:
    """Returns the entry of a program in the manifest."""
    # The last three; those before are the parameters.
    inputs, seed, rows = (str(aval.str_short()) for aval in made.in_avals[-3:])
    (output,) = made.out_avals
    options = program.options._asdict()
    del options["batch_size"]  # any number of rows
    del options["candidates"]  # a program gives one caption
    return {
        "groups": sorted(program.params),
        "arguments": {"inputs": inputs, "seed": seed, "rows": rows},  # after params
        "result": output.str_short(),
        "options": options,
    }
