import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.eval import reconstruction
from flowtok_jax.eval.reconstruction import (
    LatentStatistics,
    PerceptualDistance,
    detail_kept,
    measure_images,
    psnr_db,
    ssim,
)
from flowtok_jax.models.critics import LPIPS
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import make_mesh
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


def distance(net=NET, rows=2) -> PerceptualDistance:
    return PerceptualDistance(net, make_mesh(data=2, fsdp=2, tensor=2), rows)


def test_lpips_is_the_networks_distance_of_each_pair():
    targets = np.zeros((3, 12, 12, 3), np.float32)
    images = targets + np.array([0.125, 0.375, 0.0]).reshape(3, 1, 1, 1)
    lpips = distance()
    assert lpips(images, targets).tolist() == [0.25, 0.75, 0]
    assert lpips(images[:0], targets[:0]).shape == (0,)
    assert lpips.name(3) == "lpips_random_n3"
    assert distance(NET._replace(sha256="f" * 64)).name(3) == "lpips_n3"


def test_lpips_over_a_mesh_is_that_of_one_device():
    module = LPIPS(((4, 4), (6,)))
    targets = pictures(7, 16, 16)
    images = noisy(targets, 0.1)
    pair = jnp.asarray(images), jnp.asarray(targets)
    params = module.init(jax.random.key(0), *pair)["params"]
    wanted = module.apply({"params": params}, *pair)
    found = distance(MetricNet(module, params, "random"))(images, targets)
    assert found == pytest.approx(np.asarray(wanted), rel=1e-5)
    assert found.min() > 0


def wave(i, j, height=32, width=32, amplitude=0.4) -> np.ndarray:
    """A grey image of one frequency, in half waves across and down."""
    down, across = (np.arange(size) + 0.5 for size in (height, width))
    values = np.outer(
        np.cos(np.pi * j * down / height), np.cos(np.pi * i * across / width)
    )
    return np.repeat((0.5 + amplitude * values)[None, ..., None], 3, -1)


def blurred(images) -> np.ndarray:
    """Through (1, 2, 1) / 4 along rows, whose answer to a half wave is known."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="symmetric")
    return (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4


@pytest.mark.parametrize(("i", "j"), [(24, 0), (17, 3), (12, 12), (31, 31)])
def test_a_blurred_image_keeps_of_its_detail_what_the_filter_lets_through(i, j):
    image = wave(i, j)
    passed = ((1 + np.cos(np.pi * i / 32)) / 2) ** 2
    assert detail_kept(blurred(image), image) == pytest.approx([passed], rel=1e-6)
    # What is low of both counts as little as brightness does.
    both = image + wave(2, 3, amplitude=0.1) - 0.4
    assert detail_kept(blurred(both), both) == pytest.approx([passed], rel=1e-6)


def test_frequencies_are_parts_of_the_sides():
    wide = wave(20, 3, height=16, width=32)
    assert detail_kept(blurred(wide), wide) == pytest.approx(
        [((1 + np.cos(np.pi * 20 / 32)) / 2) ** 2], rel=1e-6
    )


def test_detail_of_equal_images_is_one_and_of_noisy_ones_more():
    targets = np.random.default_rng(0).random((3, 24, 24, 3))
    assert detail_kept(targets, targets).tolist() == [1, 1, 1]
    target = wave(48, 0, 64, 64)
    noise = 0.2 * np.random.default_rng(0).standard_normal((1, 64, 64, 1))
    # Noise is white: of its power that outside a quarter of a circle is high, while the
    # whole wave is; its square averages to 1 / 2.
    wanted = 1 + 0.2**2 * (1 - np.pi / 16) / (0.4**2 / 2)
    assert detail_kept(target + noise, target) == pytest.approx([wanted], rel=0.05)


def test_images_without_detail_are_left_out():
    flat = np.full((1, 32, 32, 3), 0.7)
    low = wave(15, 0)
    faint = wave(24, 0, amplitude=1.3 / 255)  # its root mean square: 0.92 of a level
    loud = wave(24, 0, amplitude=1.5 / 255)
    targets = np.concatenate([flat, low, faint, loud])
    copies = noisy(targets, 0.1)
    assert detail_kept(copies, targets).shape == (1,)
    assert detail_kept(copies[:3], targets[:3]).shape == (0,)


def test_images_are_measured_one_by_one_whatever_the_chunk(monkeypatch):
    monkeypatch.setattr(reconstruction, "BATCH", 2)
    targets = pictures(5)
    images = np.stack([noisy(t, 0.02 * i, i) for i, t in enumerate(targets, 1)])
    images[:, ::2] *= 0.9  # detail of all, and of the same size
    targets[:, ::2] *= 0.9
    lpips = distance()

    def measure(*pair):
        return measure_images(*pair) | {"lpips": lpips(*pair)}

    whole = measure(images, targets)
    assert set(whole) == {"psnr_db", "ssim", "detail_kept", "lpips"}
    assert {len(values) for values in whole.values()} == {5}
    assert (np.diff(whole["psnr_db"]) < 0).all()
    assert (np.diff(whole["ssim"]) < 0).all()
    assert (np.diff(whole["lpips"]) > 0).all()
    parts = [measure(images[x], targets[x]) for x in (slice(3), slice(3, 5))]
    for name, values in whole.items():
        joined = np.concatenate([part[name] for part in parts])
        assert joined == pytest.approx(values, rel=1e-5)


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
