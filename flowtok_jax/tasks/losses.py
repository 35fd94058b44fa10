"""The losses, each with its reduction in its name or docstring.

    L_flow  = mean (velocity - v(z_t, t))^2                                         (1)
    L_kl    = sum or mean of a KL of the text posterior, see KL_FORMS               (2)
    L_align = symmetric InfoNCE over the batch, or 1 - margin - cosine              (3)
    L_gan   = hinge losses on a discriminator's logits, with LeCam's regulariser    (4)

(FlowTok sections 3.2 and 3.3 and Tab. 4; release file `libs/flow_matching.py`. L_gan:
TA-TiTok's release, `modeling/modules/losses.py`.)
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from flowtok_jax.array_types import CaptionIds, Image, Logits, Tokens
from flowtok_jax.runtime.errors import UserError


def velocity_loss(predicted: Tokens, velocity: Tokens) -> Float[Array, " b"]:
    """Computes (1) of each row, mean over tokens and channels."""
    return jnp.square(predicted - velocity).mean((1, 2))


def gaussian_kl(mean: Tokens, logvar: Tokens) -> Tokens:
    """Computes the KL to N(0, 1) of each element, the paper's form."""
    return -0.5 * (1 + logvar - jnp.square(mean) - jnp.exp(logvar))


def release_kl(mean: Tokens, logvar: Tokens) -> Tokens:
    """Computes the release's form for each element: the mean is free up to about 3."""
    return -0.5 * (1 + logvar - (0.3 * mean) ** 6 - jnp.exp(logvar))


KL = {"gaussian": gaussian_kl, "release": release_kl}
# Reductions of a KL [rows, n, c], where `batch` is the rows of the whole batch.
REDUCTIONS = {
    # Sums over everything, so that the loss grows with the batch.
    "batch_sum": lambda kl, batch: kl.sum() * (batch / kl.shape[0]),
    "sample_mean": lambda kl, batch: kl.sum((1, 2)).mean(),
    "element_mean": lambda kl, batch: kl.mean(),
}
KL_FORMS = tuple(f"{form}_{how}" for form in KL for how in REDUCTIONS)


def kl_loss(
    mean: Tokens, logvar: Tokens, form: str, batch: int | None = None
) -> Float[Array, ""]:
    """Computes (2) by the name of its form and reduction, one of KL_FORMS.

    The paper's form is "gaussian", the release's "release_batch_sum".

    Args:
        batch: rows of the whole batch, where the arguments are a part of the batch; the
            mean over equal parts is then the loss of the whole.
    """
    if form not in KL_FORMS:
        raise UserError(f"KL form is {form!r}; expected one of {KL_FORMS}")
    name, how = form.split("_", 1)  # release_batch_sum: release, batch_sum
    return REDUCTIONS[how](KL[name](mean, logvar), batch or mean.shape[0])


def contrastive_alignment(
    z: Tokens, target: Tokens, tau: Float[Array, ""], groups: int = 1
) -> Float[Array, ""]:
    """Computes (3): cross-entropy of exp(tau) * cosine between all rows, both ways.

    Args:
        groups: equal parts of the batch which see only themselves. 1 compares the
            global batch; the release computes with as many groups as devices.
    """
    if groups < 1 or z.shape[0] % groups:
        raise UserError(
            f"loss.t2i.align_groups is {groups}; expected a divisor of the "
            f"{z.shape[0]} rows of the batch"
        )
    # Tokens and channels are one vector: [groups rows/groups n*c].
    a, b = (x.reshape(groups, x.shape[0] // groups, -1) for x in (z, target))
    a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    logits = jnp.exp(tau) * jnp.einsum("gif,gjf->gij", a, b)
    # Row i of a group belongs to target i.
    labels = jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape[:2])
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()
        for x in (logits, logits.swapaxes(1, 2))
    ]
    return 0.5 * (losses[0] + losses[1])


def cosine_alignment(z: Tokens, target: Tokens, margin: float) -> Float[Array, ""]:
    """Computes max(0, 1 - margin - cosine) of tokens and targets, mean over tokens."""
    return jax.nn.relu(
        1 - margin - optax.cosine_similarity(z, target, epsilon=1e-6)
    ).mean()


def reconstruction_loss(image: Image, target: Image) -> Float[Array, " b"]:
    """Computes the squared error of each image in [0, 1], mean over pixels."""
    return jnp.square(image - target).mean((1, 2, 3))


def caption_loss(logits: Logits, caption_ids: CaptionIds) -> Float[Array, " b"]:
    """Computes each caption's cross-entropy, mean over positions, padding included."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, caption_ids).mean(1)


def caption_is_exact(logits: Logits, caption_ids: CaptionIds) -> Bool[Array, " b"]:
    """Returns whether all the positions of each caption are right."""
    return (logits.argmax(-1) == caption_ids).all(-1)


def hinge_loss(
    real: Float[Array, "b g g"], fake: Float[Array, "b g g"]
) -> Float[Array, ""]:
    """Computes the discriminator's part of (4), means over everything.

    Half of mean max(0, 1 - real) + mean max(0, 1 + fake).
    """
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def generator_loss(fake: Float[Array, "b g g"]) -> Float[Array, ""]:
    """Computes the tokenizer's part of (4): minus the mean logit of its images."""
    return -fake.mean()


def lecam_loss(
    real: Float[Array, "b g g"],
    fake: Float[Array, "b g g"],
    average_real: Float[Array, ""],
    average_fake: Float[Array, ""],
) -> Float[Array, ""]:
    """Computes LeCam's part of (4), which keeps real and fake logits near each other.

    Each kind's mean logit is compared with the other kind's running average.

    Source: LeCam (Tseng et al. 2021), with means over everything before the squares,
    as the release has it.

    Args:
        average_real, average_fake: running averages of the mean logits, decay 0.999.
    """
    # One-sided, as in the release: only logits that drift apart are pulled back.
    above = jax.nn.relu(real.mean() - average_fake)
    below = jax.nn.relu(average_real - fake.mean())
    return jnp.square(above) + jnp.square(below)
