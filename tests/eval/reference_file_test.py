"""Files of reference statistics, of ours and of other programs."""

import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from flowtok_jax.eval.reference_file import check_fits, read_reference
from flowtok_jax.runtime.errors import UserError
from tests.eval import fake
from tests.eval.features_test import extractor

UNIT = {"mu": np.zeros(2), "sigma": np.eye(2)}
FEATURES = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


def test_files_of_pytorch_fid_and_clean_fid_are_read(tmp_path):
    mean, covariance = np.arange(4.0), 2 * np.eye(4)
    np.savez_compressed(tmp_path / "stats.npz", mu=mean, sigma=covariance)
    found = read_reference(tmp_path / "stats.npz")
    np.testing.assert_array_equal(found.whole.mean, mean)
    np.testing.assert_array_equal(found.whole.covariance, covariance)
    assert found.features is None
    described = found.describe()
    assert described.pop("sha256") == found.digest()
    assert described == {"images": "unknown", "resize": "unknown", "net": "unknown"}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((3, 4))}, "holds arr_0; expected mu and sigma"),
        ({"mu": np.zeros(2), "cov": np.eye(3)}, "sigma is float64 of shape (3, 3)"),
        ({"mu": np.zeros(2), "feats": np.eye(3)}, "holds mu, feats; expected mu and"),
        ({"feats": np.zeros((1, 4))}, "has features of 1 images; expected at least 2"),
        ({"feats": np.zeros((4, 1, 1))}, "expected numbers of shape (any, any)"),
        (
            {"mu": np.zeros(4), "sigma": np.zeros((3, 3))},
            "sigma is float64 of shape (3, 3); expected numbers of shape (4, 4)",
        ),
        ({"mu": np.zeros((2, 1)), "sigma": np.eye(2)}, "mu is float64 of shape (2, 1)"),
        (
            {"mu": np.array(["a"]), "sigma": np.eye(1)},
            "mu is <U1 of shape (1,); expected",
        ),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "sigma is not finite"),
        ({**UNIT, "n": np.zeros(3)}, "n is float64 of shape (3,); expected numbers of"),
        ({**UNIT, "mu/art": np.zeros(2)}, "has no sigma/art; make it by"),
        (
            {**UNIT, "features": np.zeros((5, 3))},
            "features is float64 of shape (5, 3); expected numbers of shape (any, 2)",
        ),
        ({"mu": np.array([{}]), "sigma": np.zeros(1)}, "is no npz or npy file that"),
        (b"PK\3\4 cut short", "is no npz or npy file"),
        (
            b"mu,sigma",
            "is no npz or npy file that can be read (File is not a zip file)",
        ),
        (b"", "is no npz or npy file that can be read (File is not a zip file)"),
    ],
    ids=str,
)
def test_files_of_something_else_are_refused(tmp_path, arrays, message):
    path = tmp_path / "stats.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    else:
        np.savez(path, **arrays)
    with pytest.raises(UserError) as error:
        read_reference(path)
    assert message in str(error.value)


def test_a_file_that_is_not_there_names_the_command():
    with pytest.raises(UserError, match=r"not exist; make it by `python -m flowtok"):
        read_reference(pathlib.Path("nowhere.npz"))


def saved(array, **options) -> bytes:
    """The bytes of an npy file."""
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


class Command:
    """Runs a program when it is unpickled."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("ran"),)


FILES = {
    "mean and cov": {"mean": np.ones(3), "cov": np.eye(3)},
    "guided-diffusion": {
        **{"mu": np.ones(3), "sigma": np.eye(3), "mu_s": np.ones(9)},
        "arr_0": np.array([{}]),  # would be refused if it were read
    },
    "float32": {"mu": np.ones(3, np.float32), "sigma": np.eye(3, dtype=np.float32)},
}


@pytest.mark.parametrize("name", FILES)
def test_statistics_under_names_of_other_programs(tmp_path, name):
    np.savez(tmp_path / "x.npz", **FILES[name])
    found = read_reference(tmp_path / "x.npz")
    np.testing.assert_array_equal(found.whole.mean, np.ones(3))
    np.testing.assert_array_equal(found.whole.covariance, np.eye(3))
    assert found.whole.count is None


@pytest.mark.parametrize("name", ["feats.npz", "features.npz", "x.npy"])
def test_features_are_statistics_with_all_that_needs_features(tmp_path, name):
    path = tmp_path / name
    if name == "x.npy":
        np.save(path, FEATURES)
    else:
        np.savez(path, **{path.stem: FEATURES})
    found = read_reference(path)
    exact = FEATURES.astype(np.float64)
    np.testing.assert_allclose(found.whole.mean, exact.mean(0))
    np.testing.assert_allclose(found.whole.covariance, np.cov(exact.T))
    np.testing.assert_array_equal(found.features, FEATURES)
    assert found.whole.count == len(FEATURES)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_dictionary_in_an_npy_file_is_read(tmp_path, protocol):
    """celebahq_stat.npy of NVAE and DDGAN, which pytorch-fid took for a folder."""
    held = {"mu": np.arange(3.0), "sigma": 2 * np.eye(3), "by": "nvae", "n": 7}
    header = saved(np.array(None, object), allow_pickle=True)
    body = pickle.dumps(np.array(held, object), protocol)
    path = tmp_path / "x.npy"
    path.write_bytes(header[: header.index(b"\n") + 1] + body)
    found = read_reference(path)
    np.testing.assert_array_equal(found.whole.mean, held["mu"])
    np.testing.assert_array_equal(found.whole.covariance, held["sigma"])
    assert found.whole.count == 7


NPY = {
    "images": (np.zeros((5, 8, 8, 3)), "is an array [5, 8, 8, 3]; expected features"),
    "a mean": (np.zeros(5), "is an array [5]; expected features [n, d]"),
    "a number": (np.array(5), "is an array []; expected features [n, d]"),
    "square": (np.eye(3), "features of 3 images, or a covariance without its mean"),
    "texts": (np.array([["a", "b"]]), "features is <U1 of shape (1, 2); expected"),
    "a list": (np.array([{}, {}]), "holds a ndarray; expected a dictionary of mu"),
    "a dictionary": (np.array({"a": 1}), "holds a; expected mu and sigma"),
    "a program": (np.array({"mu": Command()}), "it would call pathlib.Path.touch"),
}


@pytest.mark.parametrize("name", NPY)
def test_npy_files_of_something_else_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    array, message = NPY[name]
    path = tmp_path / "x.npy"
    path.write_bytes(saved(array, allow_pickle=True))
    with pytest.raises(UserError) as error:
        read_reference(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "array", [FEATURES, np.array({"mu": FEATURES})], ids=["f", "p"]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_an_npy_file_cut_short_is_refused(tmp_path, array, share):
    data = saved(array, allow_pickle=True)
    (tmp_path / "x.npy").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="no npz or npy file that can be read"):
        read_reference(tmp_path / "x.npy")


def test_a_header_that_claims_terabytes_is_refused(tmp_path):
    data = saved(np.zeros((5, 3)))
    claim = data.replace(b"(5, 3), }" + 10 * b" ", b"(99999999999, 3), }")
    assert len(claim) == len(data) != 0
    assert claim != data
    (tmp_path / "x.npy").write_bytes(claim)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("feats.npy", claim)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(UserError, match="no npz or npy file that can be read"):
            read_reference(tmp_path / name)


def test_files_of_pytorch_and_folders_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "stats.pt", "w") as file:
        file.writestr("archive/data.pkl", b"")
        file.writestr("archive/data/0", b"")
    with pytest.raises(UserError, match="holds archive/data.*a file of PyTorch's"):
        read_reference(tmp_path / "stats.pt")
    with pytest.raises(UserError, match="is a folder; expected a file of its stat"):
        read_reference(tmp_path)


def test_statistics_that_do_not_fit_are_refused(tmp_path):
    def reads(**arrays):
        sizes = {"mu": np.zeros(4), "sigma": np.eye(4)}
        np.savez(tmp_path / "x.npz", **{**sizes, **arrays})
        return read_reference(tmp_path / "x.npz")

    ours = extractor()
    assert ours.width == fake.FEATURES
    ours.width = 4
    check_fits(reads(), "x.npz", ours)
    check_fits(reads(resize="clean", net=fake.SHA256), "x.npz", ours)
    for arrays, message in (
        ({}, "x.npz has 4 dimensions, Inception's features here 2048"),
        ({"resize": "legacy"}, "is of legacy resizing, eval.fid.resize is clean"),
        ({"net": "0" * 64}, "is of other weights of Inception .000000000000 there"),
    ):
        ours.width = 4 if arrays else 2048
        with pytest.raises(UserError, match=message):
            check_fits(reads(**arrays), "x.npz", ours)
    ours.net_sha256 = "random"
    with pytest.raises(UserError, match=r"other weights of Inception \(unknown there"):
        check_fits(reads(), "x.npz", ours)
