"""Checks against golden files, one function for each kind of file.

A check computes with our networks, flow and training step what the release computed,
from the file's own inputs or, if it stores none, from draws by the golden rule.
"""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowtok_jax.array_types import Params
from flowtok_jax.convert.critic_checks import (
    check_convnext,
    check_discriminator,
    check_inception,
    check_lpips,
)
from flowtok_jax.convert.goldens import AbsentError, Check, Goldens
from flowtok_jax.convert.groups import convert, networks, to_release
from flowtok_jax.convert.recipe import check_titok_train
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.eval.fid import frechet_distance
from flowtok_jax.flow import paths, samplers
from flowtok_jax.models.build import Nets
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import losses
from flowtok_jax.tasks.optimizer import make_optimizer, make_schedule
from flowtok_jax.tasks.state import make_state
from flowtok_jax.tasks.step import train_step

# Relative L2 errors allowed in float32 where nothing else is said.
FORWARD_TINY = 2e-5
FORWARD = 1e-4
SAMPLE = 1e-4
TRAINED = 5e-4
BFLOAT16 = 3e-2
DISTANCE = 1e-6  # FID is computed in float64
EQUAL = 1e-12  # of ids: far below a difference of one
LOSS = 1e-4  # relative error of each training step's loss by itself
SAMPLES = ((20, 2.0), (5, 1.5), (50, 7.0))  # (steps, scale) that every model stores
# Trained weights that the golden file stores, if the model has them.
WEIGHTS = (
    "x_embedder.bias",
    "blocks.0.attn.qkv.weight",
    "blocks.1.adaLN_modulation.1.weight",
    "final_layer.linear.bias",
    "context_encoder.layers.0.attn.W_Q.weight",
    "context_projector.2.weight",
)
AVERAGES = ("blocks.0.attn.qkv.weight", "context_encoder.linear.weight")


class GoldenModel(NamedTuple):
    """Networks of a model of the folder, with their parameters."""

    nets: Nets
    params: Params
    sizes: dict[str, Any]
    is_tiny: bool

    @property
    def tolerance(self) -> float:
        """Relative L2 error allowed in one pass forward."""
        return FORWARD_TINY if self.is_tiny else FORWARD

    def apply(self, network: str, *inputs, dtype=jnp.float32, **options) -> Any:
        """Applies a network, compiled as one program."""
        net = getattr(self.nets, network).clone(dtype=dtype)
        program = jax.jit(lambda p, *x: net.apply({"params": p}, *x, **options))
        return program(self.params[network], *inputs)


def load_golden(goldens: Goldens, model: str) -> GoldenModel:
    """Makes a model of the folder with the weights of the golden rule."""
    sizes = goldens.sizes(model)
    group = "tokenizer" if goldens.is_tokenizer(model) else "t2i"
    heads = {k: v["heads"] for k, v in sizes.items() if "heads" in v}
    params = convert(group, goldens.state(model), heads)
    nets = networks(sizes)
    if group == "tokenizer":
        scale = goldens.value("latent_scale")
        nets = nets._replace(tokenizer=nets.tokenizer.clone(latent_scale=scale))
    params = jax.device_put(params)  # once, not at every call of `apply`
    return GoldenModel(nets, params, sizes, "tiny" in model)


def check_forward(check: Check) -> None:
    """Checks velocity, projector and align head; at full sizes in bfloat16 too."""
    model = load_golden(check.goldens, check.name.removesuffix(".forward"))
    t = check.input("t")
    null = check.input("null")
    inputs = {"x": model.nets.dit.channels, "text": model.sizes["clip"]["width"]}
    for key, width in inputs.items():
        shape = (len(t), model.nets.dit.tokens, width)
        is_stored = model.is_tiny or key in check
        inputs[key] = check.input(key) if is_stored else check.goldens.draw(key, *shape)
    x, text = (jnp.asarray(values) for values in inputs.values())
    check.compare("velocity", model.apply("dit", x, t, null), model.tolerance)
    posterior = model.apply("projector", text)
    check.compare("text_mean", posterior.mean, model.tolerance)
    check.compare("text_logvar", posterior.logvar, model.tolerance)
    target, _ = model.apply("align_head", text)
    check.compare("text_projection", target, model.tolerance)
    if not model.is_tiny:  # bfloat16 is what full sizes are sampled in
        velocity = model.apply("dit", x, t, null, dtype=jnp.bfloat16)
        check.compare("velocity", velocity, BFLOAT16, note=" (bfloat16)")


def release_losses(
    nets: Nets, params: Params, batch: dict[str, jax.Array]
) -> dict[str, Any]:
    """Computes the release's losses at given noise, times and null rows."""
    posterior = nets.projector.apply({"params": params["projector"]}, batch["text"])
    z_src = posterior.mean + posterior.std * batch["eps"]
    head = {"params": params["align_head"]}
    target, tau = nets.align_head.apply(head, batch["text"])
    z_tgt, null = paths.null_row_targets(batch["image_tokens"], batch["null"])
    z_t, velocity = paths.straight_path(z_src, z_tgt, batch["t"])
    predicted = nets.dit.apply({"params": params["dit"]}, z_t, batch["t"], null)
    return {
        "flow": losses.velocity_loss(predicted, velocity),
        "align": losses.contrastive_alignment(z_src, target, tau),
        "kl": losses.kl_loss(posterior.mean, posterior.logvar, "release_batch_sum"),
    }


def check_loss(check: Check) -> None:
    """Checks each term and the total, with several null rows and with one."""
    model = load_golden(check.goldens, check.name.removesuffix(".loss"))
    run = jax.jit(functools.partial(release_losses, model.nets))
    batch = {key: check.input(key) for key in ("text", "eps", "image_tokens", "t")}
    for suffix in ("", "_single"):
        parts = run(model.params, batch | {"null": check.input(f"null{suffix}")})
        kl = 0.01 * parts["kl"]  # the release's weight; golden values include it
        if not suffix:
            check.compare("align", parts["align"], model.tolerance)
            check.compare("kl_reference", kl, model.tolerance)
        check.compare(f"flow{suffix}", parts["flow"], model.tolerance)
        total = parts["flow"] + parts["align"] + kl
        check.compare(f"total{suffix}", total, model.tolerance)


def _sample(
    model: GoldenModel, z_src: jax.Array, num_steps: int, scale: float
) -> jax.Array:
    def run(params, z):
        velocity = samplers.guided(
            lambda *x: model.nets.dit.apply({"params": params}, *x), scale
        )
        return samplers.euler(velocity, z, num_steps, "release")

    return jax.jit(run)(model.params["dit"], z_src)


def check_sample(check: Check) -> None:
    """Checks guided Euler steps at the release's times."""
    model = load_golden(check.goldens, check.name.removesuffix(".sample"))
    z_src = check.input("z0")
    # A folder may store further samples beside those that every model has.
    found = (re.fullmatch(r"steps(\d+)_scale([\d.]+)", key) for key in check.arrays)
    stored = {(int(match[1]), float(match[2])) for match in found if match}
    for num_steps, scale in sorted(stored | set(SAMPLES)):
        key = f"steps{num_steps}_scale{scale}"
        check.compare(key, _sample(model, z_src, num_steps, scale), SAMPLE)


def _train_batch(goldens: Goldens, sizes: dict[str, Any], step: int) -> dict[str, Any]:
    """Draws the batch of a step as the folder's README says."""
    rows = 4
    tokens = sizes["latent"]["tokens"]
    channels = sizes["latent"]["channels"]
    width = sizes["clip"]["width"]
    return {
        "image_tokens": goldens.draw(f"train/x1/{step}", rows, tokens, channels),
        "text": goldens.draw(f"train/text/{step}", rows, tokens, width),
        "eps": goldens.draw(f"train/eps/{step}", rows, tokens, channels),
        "t": goldens.uniform(f"train/t/{step}", rows),
        # With one null row only, as in odd steps, no row is null at all.
        "null": np.array([step % 2 == 0, True, False, False]),
    }


def check_train(check: Check) -> None:
    """Checks our training step, optimiser and EMA over several steps."""
    model = load_golden(check.goldens, check.name.removesuffix(".train"))
    num_steps = len(check.input("losses"))
    schedule = make_schedule(
        lr=4e-4, lr_end=0.0, warmup_steps=4, schedule="constant", num_steps=num_steps
    )
    optimizer = make_optimizer(
        schedule, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.03, clip_norm=None
    )

    def loss(trained, frozen, batch, key):
        parts = release_losses(model.nets, trained, batch)
        return (parts["flow"] + parts["align"] + 1e-4 * parts["kl"]).mean(), {}

    step = jax.jit(
        functools.partial(train_step, loss=loss, optimizer=optimizer, ema_decay=0.9)
    )
    state = make_state(model.params, optimizer, seed=0)
    logs = []
    for i in range(num_steps):
        batch = _train_batch(check.goldens, model.sizes, i)
        state, scalars = step(state, {}, jax.tree.map(jnp.asarray, batch))
        logs.append((scalars["loss/total"], scalars["grad_norm"], schedule(i)))
    values, norms, rates = np.array(logs, np.float64).T  # one row per step
    check.compare("losses", values, LOSS, each=True)
    check.compare("grad_norms", norms, TRAINED, each=True)
    check.compare("lrs", rates, 1e-6)
    trained, averaged = (
        to_release("t2i", jax.device_get(params), model.sizes)
        for params in (state.params, state.ema)
    )
    check.compare("t2t_final", trained["t2t_temperature"], TRAINED)
    outputs = {key: trained[key] for key in WEIGHTS if key in trained}
    outputs |= {f"ema/{key}": averaged[key] for key in AVERAGES if key in averaged}
    for key, values in outputs.items():  # npz stores / where the release has a dot
        check.compare(key.replace(".", "/"), values, TRAINED)


def _tokens_first(array: jax.Array) -> jax.Array:
    return array[:, :, 0].transpose(0, 2, 1)  # [b c 1 n] -> [b n c]


def check_tokenizer(check: Check) -> None:
    """Checks moments and decoded images.

    At full sizes the file stores every 4th pixel, the mean and the deviation.
    """
    model = load_golden(check.goldens, check.name)
    draws = check.goldens
    tokenizer = model.nets.tokenizer
    width = model.sizes["clip"]["width"]
    is_stored = model.is_tiny or "image" in check
    if is_stored:
        image, tokens, text = (check.input(k) for k in ("image", "tokens", "text"))
    else:
        side = tokenizer.image_size
        image = jnp.asarray(draws.uniform("image", 1, 3, side, side))
        shape = (1, tokenizer.channels, 1, tokenizer.tokens)
        tokens = jnp.asarray(draws.draw("tok", *shape))
        text = jnp.asarray(draws.draw("text", 1, tokenizer.tokens, width))
    image = image.transpose(0, 2, 3, 1)  # [b 3 s s] -> [b s s 3]
    posterior = model.apply("tokenizer", image, method="encode")
    moments = jnp.concatenate([posterior.mean, posterior.logvar], -1)
    moments = moments.transpose(0, 2, 1)[:, :, None]  # [b 2c 1 n]
    check.compare("moments", moments, model.tolerance)

    def decode(tokens):
        image = model.apply("tokenizer", tokens, text, method="decode")
        return image.transpose(0, 3, 1, 2)  # [b 3 s s]

    decoded = decode(_tokens_first(tokens))
    if is_stored:
        kl = losses.gaussian_kl(posterior.mean, posterior.logvar).sum(-1)
        check.compare("decoded", decoded, model.tolerance)
        check.compare("kl", kl, model.tolerance)
        check.compare("reconstruction", decode(posterior.mean), model.tolerance)
    else:
        pixels = decoded[:, :, ::4, ::4]
        check.compare("decoded_every_4th_pixel", pixels, model.tolerance)
        check.compare("decoded_mean", decoded.mean(), model.tolerance)
        # torch.std divides by n - 1.
        check.compare("decoded_std", decoded.std(ddof=1), model.tolerance)


def check_end_to_end(check: Check) -> None:
    """Checks text features to an image: projector, 20 guided steps, decoder."""
    size = check.name.removeprefix("end_to_end_")
    flow = load_golden(check.goldens, f"flowtok_{size}")
    image = load_golden(check.goldens, f"flowtitok_{size}")
    text = check.input("text")
    posterior = flow.apply("projector", text)
    z_src = posterior.mean + posterior.std * check.input("eps")
    check.compare("z0", z_src, flow.tolerance)
    z_img = _sample(flow, z_src, 20, 2.0)
    check.compare("z1", z_img, SAMPLE)
    tokens = z_img / image.nets.tokenizer.latent_scale  # scaled to raw
    decoded = image.apply("tokenizer", tokens, text, method="decode")
    check.compare("image", decoded.transpose(0, 3, 1, 2), SAMPLE)


def check_fid(check: Check) -> None:
    """Checks the Fréchet distance of two sets of draws."""
    a = check.goldens.draw("fid/a", 500, 64)
    # In float32, as the golden value was made; only then to float64.
    b = check.goldens.draw("fid/b", 400, 64) * 1.3 + 0.2
    sets = (x.astype(np.float64) for x in (a, b))
    moments = [m for x in sets for m in (x.mean(0), np.cov(x, rowvar=False))]
    check.compare("fid", frechet_distance(*moments), DISTANCE)


def check_clip_ids(check: Check) -> None:
    """Checks the ids of captions, which are equal or wrong."""
    captions = check.values("caption").tolist()
    expected = check.values("ids")
    folder = check.goldens.folder / "clip_vocabulary"
    if not folder.is_dir():
        raise AbsentError(f"{folder} does not exist; the ids are by its vocabulary")
    vocabulary = Vocabulary.read_clip(folder, expected.shape[1])
    got = vocabulary.encode(captions, warns=False)
    for row in np.flatnonzero((got != expected).any(axis=1)):
        check.report.fault(f"clip_ids/{row}", f"has other ids: {captions[row]!r}")
    check.compare("ids", got, EQUAL)


# Checks of files by their whole name, and by the ending of their name.
BY_NAME = {
    "clip_ids": check_clip_ids,
    "convnext": check_convnext,
    "discriminator": check_discriminator,
    "lpips": check_lpips,
    "titok_train": check_titok_train,
    "inception": check_inception,
    "fid": check_fid,
}
BY_ENDING = {
    ".forward": check_forward,
    ".loss": check_loss,
    ".sample": check_sample,
    ".train": check_train,
}


def find_check(goldens: Goldens, name: str) -> Callable[[Check], None]:
    """Returns the check of a golden file.

    Raises:
        UserError: if the name tells no known kind.
    """
    if name in BY_NAME:
        return BY_NAME[name]
    ending = pathlib.PurePath(name).suffix
    if ending in BY_ENDING:
        return BY_ENDING[ending]
    if name.startswith("end_to_end_"):
        return check_end_to_end
    if name in goldens.values and goldens.is_tokenizer(name):
        return check_tokenizer
    raise UserError("is of no known kind, and golden.json has no sizes of it")
