"""Files of reference statistics, damaged or of other things."""

import io
import pickle

import numpy as np
from hypothesis import strategies as st

from flowtok_jax.eval.reference_file import read_reference
from tests.fuzz.bounds import fresh, odd, opened
from tests.fuzz.strategies import FOREIGN, Long, mutated, words

WIDTH = 3
MU = np.zeros(WIDTH)
SIGMA = np.eye(WIDTH)
FEATURES = np.random.default_rng(0).random((5, WIDTH)).astype("f4")


def npz(packed: bool = False, **arrays) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(out, **arrays)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def claiming(shape: str) -> bytes:
    """An npy file of a few bytes whose header claims a shape."""
    return npy(FEATURES).replace(b"(5, 3)", shape.encode())


FILES = (
    npz(mu=MU, sigma=SIGMA),
    npz(True, mu=MU, sigma=SIGMA, n=np.int64(9), resize="clean"),
    npz(feats=FEATURES),
    npy(FEATURES),
    npy(np.array({"mu": MU, "sigma": SIGMA}, object)),
)
OTHERS = (
    *FOREIGN,
    *map(claiming, ("(99999999999, 3)", "(-5, 3)", "(5, 2**62)", "()", "(5.0, 3)")),
    npz(mu=MU, sigma=SIGMA * np.nan),
    npz(mu="a", sigma=SIGMA),
    npz(mu=np.array([None] * WIDTH), sigma=SIGMA),
    pickle.dumps({"mu": MU}),
    Long(npz(True, mu=np.zeros(30_000_000), sigma=SIGMA)),
)
arrays = st.one_of(
    st.just(MU),
    st.just(SIGMA),
    st.just(FEATURES),
    st.sampled_from((np.nan, np.inf, 1 + 2j, "text", b"bytes", True, -1, 2**63)),
)
held = st.dictionaries(
    st.sampled_from(
        ("mu", "sigma", "mu/a", "sigma/a", "n", "feats", "mean", "cov", "x")
    ),
    arrays,
)
made_files = st.one_of(
    held.map(lambda values: npz(**values)),
    held.map(lambda values: npy(np.array(values, object))),
    words.map(lambda text: npy(np.array(text))),
)
KEPT = st.one_of(mutated(FILES), st.sampled_from(OTHERS), made_files, st.binary())


@odd(200, data=KEPT, ending=st.sampled_from(("npz", "npy")))
def test_a_file_of_any_bytes_is_statistics_or_refused(data, ending):
    with fresh() as root:
        place = root / f"a.{ending}"
        place.write_bytes(data)
        reference = opened(read_reference, place)
        if reference is not None:
            mean = reference.whole.mean
            assert np.isfinite(mean).all()
            assert reference.whole.covariance.shape == (len(mean), len(mean))
