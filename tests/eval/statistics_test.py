import numpy as np
import pytest

from flowtok_jax.eval.statistics import Moments


def rows(count=500, width=12, offset=1e4):
    """Far from zero, where sums of squares lose their digits."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((width, width))
    return offset + rng.standard_normal((count, width)) @ mixing


def assert_same(moments, wanted, rtol=1e-12):
    assert moments.count == wanted.count
    np.testing.assert_allclose(moments.mean, wanted.mean, rtol=rtol)
    scale = np.abs(wanted.scatter).max()
    np.testing.assert_allclose(moments.scatter, wanted.scatter, atol=rtol * scale)


def test_moments_are_numpys():
    found = Moments.of(rows())
    np.testing.assert_allclose(found.mean, rows().mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(rows(), rowvar=False))


@pytest.mark.parametrize("size", [1, 7, 499])
def test_the_split_does_not_matter(size):
    found = Moments()
    for start in range(0, 500, size):
        found = found.add(rows()[start : start + size])
    assert_same(found, Moments.of(rows()))


def test_the_order_does_not_matter_nor_which_is_merged_into_which():
    shuffled = np.random.default_rng(1).permutation(rows())
    parts = [Moments.of(part) for part in np.array_split(shuffled, 8)]
    left, right = Moments(), Moments()
    for part in parts:
        left, right = left.merge(part), part.merge(right)
    assert_same(left, Moments.of(rows()))
    assert_same(right, Moments.of(rows()))


def test_float32_rows_are_summed_in_float64():
    data = rows(100_000, 2, 100.0).astype(np.float32)
    found = Moments()
    for part in np.array_split(data, 100):
        found = found.add(part)
    wanted = data.astype(np.float64)
    np.testing.assert_allclose(found.mean, wanted.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(wanted.T), rtol=1e-10)


def test_no_rows_are_no_rows():
    assert Moments().count == Moments.of(np.zeros((0, 3))).count == 0
    assert_same(Moments().merge(Moments.of(rows())), Moments.of(rows()))
    assert_same(Moments.of(rows()).add(rows()[:0]), Moments.of(rows()))
