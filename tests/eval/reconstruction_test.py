import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.eval import reconstruction
from flowtok_jax.eval.reconstruction import (
    LatentStatistics,
    lpips,
    measure_images,
    psnr_db,
    ssim,
)
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.nets import MetricNet


def pictures(count=3, height=17, width=17, seed=0) -> np.ndarray:
    """Smooth images in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / height
    phase = rng.uniform(0, 6, (count, 1, 1, 3))
    waves = np.sin(5 * x[None, ..., None] + phase) * np.cos(3 * y[None, ..., None])
    return (0.5 + 0.4 * waves).astype(np.float32)


def noisy(images, std, seed=1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(images.shape, np.float32)
    return np.clip(images + std * noise, 0, 1)


def test_psnr_is_that_of_each_images_mean_squared_error():
    zeros = np.zeros((3, 4, 4, 3), np.float32)
    images = zeros.copy()
    images[0] += 0.1
    images[1, :2] += 0.1  # half of it
    assert psnr_db(images, zeros)[:2] == pytest.approx([20, 23.0103])
    assert psnr_db(images, zeros)[2] == np.inf


def slow_ssim(image: np.ndarray, target: np.ndarray) -> float:
    """Window by window, as Wang et al. write it."""
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for channel in range(3):
        for top in range(image.shape[0] - 10):
            for left in range(image.shape[1] - 10):
                x, y = (
                    a[top : top + 11, left : left + 11, channel].astype(np.float64)
                    for a in (image, target)
                )
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                var_x = (window * (x - mean_x) ** 2).sum()
                var_y = (window * (y - mean_y) ** 2).sum()
                both = (window * (x - mean_x) * (y - mean_y)).sum()
                values.append(
                    (2 * mean_x * mean_y + 0.01**2)
                    * (2 * both + 0.03**2)
                    / (mean_x**2 + mean_y**2 + 0.01**2)
                    / (var_x + var_y + 0.03**2)
                )
    return float(np.mean(values))


def test_ssim_is_that_of_every_window():
    targets = pictures(width=21)
    images = np.stack([noisy(targets[0], 0.05), targets[1] ** 2, 1 - targets[2]])
    wanted = [slow_ssim(a, b) for a, b in zip(images, targets, strict=True)]
    assert ssim(images, targets) == pytest.approx(wanted, abs=2e-6)
    assert min(wanted) < 0 < 0.5 < max(wanted) < 0.99


def test_ssim_of_flat_images_keeps_its_digits():
    flat = np.full((1, 16, 16, 3), 0.9, np.float32)
    noise = noisy(flat, 1e-3)
    wanted = slow_ssim(noise[0], flat[0])
    assert ssim(noise, flat) == pytest.approx([wanted], abs=2e-6)
    assert ssim(flat, flat) == pytest.approx([1], abs=1e-6)


def test_ssim_needs_room_for_its_window():
    with pytest.raises(UserError, match="12 x 10 pixels; expected at least 11 x 11"):
        ssim(np.zeros((1, 10, 12, 3)), np.zeros((1, 10, 12, 3)))


class Distance(nn.Module):
    """Stands in for LPIPS."""

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, ())

    def __call__(self, a, b):
        return self.scale * jnp.abs(a - b).mean((1, 2, 3))


NET = MetricNet(Distance(), {"scale": jnp.full((), 2.0)}, "random")


def test_lpips_is_the_networks_distance_of_each_pair():
    targets = np.zeros((3, 12, 12, 3), np.float32)
    images = targets + np.array([0.1, 0.3, 0.0]).reshape(3, 1, 1, 1)
    assert lpips(NET, images, targets) == pytest.approx([0.2, 0.6, 0])


def test_images_are_measured_one_by_one_whatever_the_chunk(monkeypatch):
    monkeypatch.setattr(reconstruction, "BATCH", 2)
    targets = pictures(5)
    images = np.stack([noisy(t, 0.02 * i, i) for i, t in enumerate(targets, 1)])
    whole = measure_images(images, targets, NET)
    assert set(whole) == {"psnr_db", "ssim", "lpips"}
    assert (np.diff(whole["psnr_db"]) < 0).all()
    assert (np.diff(whole["ssim"]) < 0).all()
    assert (np.diff(whole["lpips"]) > 0).all()
    parts = [
        measure_images(images[rows], targets[rows], NET)
        for rows in (slice(3), slice(3, 5))
    ]
    for name, values in whole.items():
        joined = np.concatenate([part[name] for part in parts])
        assert joined == pytest.approx(values, rel=1e-5)
    assert set(measure_images(images, targets)) == {"psnr_db", "ssim"}


def statistics(codes: Posterior) -> LatentStatistics:
    return LatentStatistics.of(np.asarray(codes.mean), np.asarray(codes.logvar))


def posterior(count, seed=0) -> Posterior:
    """Four tokens of three channels of different means, widths and noise."""
    rng = np.random.default_rng(seed)
    mean = np.array([0.5, -2, 0]) + [0.3, 1, 2] * rng.standard_normal((count, 4, 3))
    logvar = np.array([-3, 0, 0.5]) + 0.2 * rng.standard_normal((count, 4, 3))
    return Posterior(jnp.float32(mean), jnp.float32(logvar))


def test_statistics_are_those_of_many_samples():
    codes = posterior(50)
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((4000, *codes.mean.shape), np.float32)
    samples = np.asarray(codes.mean) + np.asarray(codes.std) * noise
    found = statistics(codes)
    channels, summary = found.channels(), found.summary()
    assert channels["mean"] == pytest.approx(samples.mean((0, 1, 2)), abs=3e-3)
    assert channels["std"] == pytest.approx(samples.std((0, 1, 2)), rel=3e-3)
    assert summary["latent_std"] == pytest.approx(samples.std(), rel=3e-3)
    assert summary["implied_latent_scale"] * samples.std() == pytest.approx(1, rel=3e-3)


def test_kl_is_that_of_the_densities():
    codes = posterior(2)
    grid = np.linspace(-15, 15, 20001)
    wanted = np.zeros(3)
    for mean, std in zip(
        np.float64(codes.mean).reshape(-1, 3),
        np.float64(codes.std).reshape(-1, 3),
        strict=True,
    ):
        log_q = -0.5 * ((grid[:, None] - mean) / std) ** 2 - np.log(std)
        log_p = -0.5 * grid[:, None] ** 2
        density = np.exp(log_q) / np.sqrt(2 * np.pi)
        wanted += np.trapezoid(density * (log_q - log_p), grid, axis=0) / 8
    found = statistics(codes)
    assert found.channels()["kl"] == pytest.approx(wanted, rel=1e-6)
    assert found.summary()["latent_kl_per_token"] == pytest.approx(wanted.sum())
    assert found.summary()["latent_kl_per_image"] == pytest.approx(4 * wanted.sum())


def test_statistics_of_chunks_are_those_of_the_whole():
    codes, merged = posterior(9), LatentStatistics()
    for rows in (slice(0, 2), slice(2, 3), slice(3, 9)):
        part = Posterior(codes.mean[rows], codes.logvar[rows])
        merged = merged.merge(statistics(part))
    whole = statistics(codes)
    assert (merged.images, merged.tokens) == (whole.images, whole.tokens) == (9, 36)
    assert merged.summary() == pytest.approx(whole.summary(), rel=1e-12)
    assert merged.channels()["std"] == pytest.approx(whole.channels()["std"], rel=1e-12)


def test_scaling_by_the_implied_scale_gives_unit_tokens():
    codes = posterior(20)
    scale = statistics(codes).summary()["implied_latent_scale"]
    scaled = Posterior(scale * codes.mean, codes.logvar + 2 * np.log(scale))
    again = statistics(scaled).summary()
    assert again["latent_std"] == pytest.approx(1, rel=1e-6)
    assert scale < 0.9
