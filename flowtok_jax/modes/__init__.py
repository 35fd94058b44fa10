"""One file a --mode; each has `run(arguments)`, which returns the exit status."""

from flowtok_jax.modes import (
    bench,
    caption,
    compile,
    edit,
    eval,
    pretokenize,
    sample,
    serve,
    train,
)

MODES = {
    "train": train,
    "sample": sample,
    "caption": caption,
    "edit": edit,
    "eval": eval,
    "pretokenize": pretokenize,
    "compile": compile,
    "bench": bench,
    "serve": serve,
}
