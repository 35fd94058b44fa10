import pathlib

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from flowtok_jax.convert.goldens import Goldens
from flowtok_jax.eval import fid
from flowtok_jax.eval.fid import Moments

GOLDEN = pathlib.Path(__file__).parents[3] / "shared" / "golden"


def normal(count, width, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width))


def covariance(width, rank, seed=0):
    factor = normal(width, rank, seed)
    return factor @ factor.T


def distance(a, b):
    a, b = Moments.of(a), Moments.of(b)
    return fid.frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def test_gaussians_with_shared_axes_follow_the_closed_form():
    """|m|^2 + sum of (s_a - s_b)^2, whatever the rotation; down to tiny variances."""
    turn, _ = np.linalg.qr(normal(40, 40))
    s_a, s_b = np.geomspace(1e-7, 3, 40), np.geomspace(5, 1e-6, 40)
    mean = normal(2, 40, 1)
    found = fid.frechet_distance(
        mean[0], turn @ np.diag(s_a**2) @ turn.T, mean[1], (turn * s_b**2) @ turn.T
    )
    wanted = ((mean[0] - mean[1]) ** 2).sum() + ((s_a - s_b) ** 2).sum()
    # A covariance of size 25 is rounded by 1e-15: its tiny variances are not exact.
    assert found == pytest.approx(wanted, rel=1e-7)


def test_it_is_that_of_scipys_matrix_root():
    a, b = covariance(30, 60), covariance(30, 45, 1)
    zero = np.zeros(30)
    wanted = np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert fid.frechet_distance(zero, a, zero, b) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("count", [50, 2000])
def test_a_set_against_itself_is_at_no_distance(count):
    rows = 30 * np.abs(normal(count, 300)) + 7  # of rank 49 with 50 rows
    assert distance(rows, rows) < 1e-6
    assert distance(rows, np.random.default_rng(1).permutation(rows)) < 1e-6


def test_fewer_rows_than_dimensions_are_as_exact_as_the_space_they_span():
    """Rotated into 400 dimensions, sets of 40 have the distance they had in 20."""
    a, b = normal(40, 20), 1.5 * normal(40, 20, 1) + 0.1
    turn, _ = np.linalg.qr(normal(400, 20, 2))
    assert distance(a @ turn.T, b @ turn.T) == pytest.approx(distance(a, b), rel=1e-9)


def test_sets_in_orthogonal_spaces_share_no_variance():
    """Rounding gives each a little variance where the other one's is."""
    turn, _ = np.linalg.qr(normal(60, 60))
    a, b = (x @ covariance(20, 30) @ x.T for x in (turn[:, :20], turn[:, 20:40]))
    zero = np.zeros(60)
    wanted = np.trace(a) + np.trace(b)
    assert fid.frechet_distance(zero, a, zero, b) == pytest.approx(wanted, rel=1e-12)
    assert fid.frechet_distance(zero, 0 * a, zero, 0 * a) == 0
    assert fid.frechet_distance(zero, a, zero, 0 * a) == pytest.approx(np.trace(a))


def test_the_golden_distance():
    if not GOLDEN.is_dir():
        pytest.skip(f"no {GOLDEN}: the folder of golden numbers")
    golden = Goldens(GOLDEN)
    found = distance(
        golden.draw("fid/a", 500, 64), golden.draw("fid/b", 400, 64) * 1.3 + 0.2
    )
    with np.load(GOLDEN / "fid.npz") as wanted:
        assert found == pytest.approx(float(wanted["fid"]), rel=1e-6)


def test_the_inception_score_is_that_of_certain_and_even_classes():
    certain = 50 * np.eye(8)[np.arange(800) % 8]
    assert fid.inception_score(certain, splits=1).mean == pytest.approx(8, rel=1e-6)
    assert fid.inception_score(np.zeros((50, 8))) == pytest.approx((1, 0))
    lonely = 50 * np.eye(8)[np.zeros(50, int)]
    assert fid.inception_score(lonely).mean == pytest.approx(1)


def test_the_inception_score_is_the_mean_of_splits_that_are_shuffled():
    """Sorted by class, each split would hold one class only and score 1."""
    sorted_rows = 50 * np.eye(4)[np.repeat(np.arange(4), 100)]
    found = fid.inception_score(sorted_rows, splits=4)
    assert 3.5 < found.mean < 4
    assert 0 < found.std < 0.5
    assert found == fid.inception_score(sorted_rows, splits=4)


def test_one_large_split_of_the_inception_score_by_hand():
    logits = normal(60, 5)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    divergence = [scipy.stats.entropy(row, p.mean(0)) for row in p]
    found = fid.inception_score(logits, splits=1)
    assert found.mean == pytest.approx(np.exp(np.mean(divergence)))


def kid_by_pairs(a, b):
    """The definition, pair by pair."""

    def mean(x, y, skip):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y))]
        return np.mean(
            [
                (x[i] @ y[j] / x.shape[1] + 1) ** 3
                for i, j in pairs
                if not skip or i != j
            ]
        )

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def test_kid_is_that_of_all_pairs():
    a, b = normal(9, 6), normal(9, 6, 1) + 0.5
    found = fid.kernel_distance(a, b, subsets=3)
    assert found.mean == pytest.approx(kid_by_pairs(a, b))
    assert found.std == 0  # one pair of subsets, as there is no other


def test_kid_is_unbiased_seeded_and_sees_a_shift():
    a, b = normal(600, 6), normal(600, 6, 1)
    options = {"subsets": 200, "subset_size": 50}
    same = fid.kernel_distance(a, b, **options)
    assert abs(same.mean) < 3 * same.std / np.sqrt(200) + 0.01
    assert fid.kernel_distance(a, b + 0.5, **options).mean > 0.2
    assert fid.kernel_distance(a, b, **options) == same
    assert fid.kernel_distance(a, b, seed=1, **options) != same


def reach_by_hand(rows, k):
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    return np.sort(distances, axis=1)[:, k]


def test_precision_and_recall_are_those_of_every_ball(monkeypatch):
    monkeypatch.setattr(fid, "BLOCK", 16)  # several blocks
    real, samples = normal(50, 3) + 9, 0.8 * normal(40, 3, 1) + 9.5
    between = np.linalg.norm(real[:, None] - samples[None], axis=-1)
    precision = (between <= reach_by_hand(real, 3)[:, None]).any(0).mean()
    recall = (between <= reach_by_hand(samples, 3)[None]).any(1).mean()
    assert fid.precision_recall(real, samples) == (precision, recall)
    assert 0 < recall < precision < 1


def test_precision_and_recall_of_equal_of_far_and_of_collapsed_sets():
    real = normal(64, 5)
    assert fid.precision_recall(real, real) == (1, 1)
    assert fid.precision_recall(real, real + 100) == (0, 0)
    precision, recall = fid.precision_recall(real, 0.01 * normal(64, 5, 1))
    assert precision > 0.9
    assert recall == 0


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
