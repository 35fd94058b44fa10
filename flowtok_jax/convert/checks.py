"""What a golden file is compared with: one function a kind of file.

Each computes by our networks, flow and training step what the release computed, from
the file's own inputs or, where it stores none, from draws by the golden rule.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowtok_jax.array_types import Params
from flowtok_jax.convert.convert import convert, networks, to_release
from flowtok_jax.convert.goldens import Goldens
from flowtok_jax.flow import paths, samplers
from flowtok_jax.models.build import Nets
from flowtok_jax.runtime.cli import say
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import losses
from flowtok_jax.tasks.optimizer import make_optimizer, make_schedule
from flowtok_jax.tasks.state import make_state
from flowtok_jax.tasks.step import train_step

# Relative L2 errors that float32 may have, and bfloat16.
FORWARD_TINY, FORWARD, SAMPLE, TRAINED, BFLOAT16 = 2e-5, 1e-4, 1e-4, 5e-4, 3e-2
LOSS = 1e-4  # of a training step, of each by itself
SAMPLES = ((20, 2.0), (5, 1.5), (50, 7.0))  # steps and scale
# The training run's weights that the release's numbers hold, where the model has them.
WEIGHTS = (
    "x_embedder.bias",
    "blocks.0.attn.qkv.weight",
    "blocks.1.adaLN_modulation.1.weight",
    "final_layer.linear.bias",
    "context_encoder.layers.0.attn.W_Q.weight",
    "context_projector.2.weight",
)
AVERAGES = ("blocks.0.attn.qkv.weight", "context_encoder.linear.weight")


class Result(NamedTuple):
    """One line of the report."""

    name: str
    verdict: str  # ok or FAIL
    max_abs: float
    measure: str  # rel_l2, or rel_max: the largest of the values' own
    relative: float
    tolerance: float


class Report:
    """Says and keeps a line a tensor, and a line whatever could not be compared."""

    def __init__(self):
        self.results: list[Result] = []
        self.faults: dict[str, str] = {}  # name -> why it could not be compared

    def add(self, result: Result) -> None:
        self.results.append(result)
        say(
            f"{result.verdict:7} {result.name:56} max_abs {result.max_abs:9.2e}  "
            f"{result.measure} {result.relative:9.2e}  allowed {result.tolerance:.0e}"
        )

    def fault(self, name: str, why: str) -> None:
        self.faults[name] = why
        say(f"{'FAIL':7} {name:56} {why}")

    @property
    def failed(self) -> list[str]:
        bad = [r.name for r in self.results if r.verdict != "ok"]
        return bad + list(self.faults)


class Check:
    """One golden file: gives its inputs, takes our outputs."""

    def __init__(self, goldens: Goldens, name: str, report: Report):
        self.goldens, self.name, self.report = goldens, name, report
        self.arrays = goldens.arrays(name)
        self._left = set(self.arrays)

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def input(self, key: str) -> jax.Array:
        """A stored input."""
        if key not in self.arrays:
            raise UserError(f"{self.name}.npz has no {key!r}, which is an input")
        self._left.discard(key)
        return jnp.asarray(self.arrays[key])

    def compare(
        self, key: str, got: Any, tolerance: float, *, each: bool = False, note=""
    ) -> None:
        """Reports an output; with `each` the error is the largest of its values'."""
        name = f"{self.name}/{key}{note}"
        if key not in self.arrays:
            self.report.fault(name, f"missing in {self.name}.npz")
            return
        self._left.discard(key)
        got, wanted = (np.asarray(x, np.float64) for x in (got, self.arrays[key]))
        if got.shape != wanted.shape:
            self.report.fault(name, f"is {wanted.shape} there and {got.shape} here")
            return
        error = np.abs(got - wanted)
        if each:
            measure, relative = "rel_max", float(np.max(error / np.abs(wanted)))
        else:
            relative = float(np.linalg.norm(error) / np.linalg.norm(wanted))
            measure = "rel_l2"
        verdict = "ok" if relative <= tolerance else "FAIL"
        worst = float(error.max())
        self.report.add(Result(name, verdict, worst, measure, relative, tolerance))

    def finish(self) -> None:
        """Reports what nothing was compared with."""
        for key in sorted(self._left):
            self.report.fault(f"{self.name}/{key}", "is not known here")


class Model(NamedTuple):
    """Networks of the release and their parameters, by network."""

    nets: Nets
    params: Params
    sizes: dict[str, Any]
    is_tiny: bool

    @property
    def tolerance(self) -> float:
        return FORWARD_TINY if self.is_tiny else FORWARD

    def apply(self, network: str, *inputs, dtype=jnp.float32, **options) -> Any:
        """What a network gives, compiled; float32 is float32 on every device."""
        net = getattr(self.nets, network).clone(dtype=dtype)
        program = jax.jit(lambda p, *x: net.apply({"params": p}, *x, **options))
        return program(self.params[network], *inputs)


def load(goldens: Goldens, model: str) -> Model:
    """A model of the folder, its weights made by the rule."""
    sizes = goldens.sizes(model)
    group = "tokenizer" if goldens.is_tokenizer(model) else "t2i"
    heads = {k: v["heads"] for k, v in sizes.items() if "heads" in v}
    params = convert(group, goldens.state(model), heads)
    nets = networks(sizes)
    if group == "tokenizer":
        scale = goldens.value("latent_scale")
        nets = nets._replace(tokenizer=nets.tokenizer.clone(latent_scale=scale))
    params = jax.device_put(params)
    return Model(nets, params, sizes, "tiny" in model)


def check_forward(check: Check) -> None:
    """Velocity, projector and align head; of full sizes in bfloat16 too."""
    model = load(check.goldens, check.name.removesuffix(".forward"))
    t, null = check.input("t"), check.input("null")
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
    if not model.is_tiny:
        velocity = model.apply("dit", x, t, null, dtype=jnp.bfloat16)
        check.compare("velocity", velocity, BFLOAT16, note=" (bfloat16)")


def _losses(nets: Nets, params: Params, batch: dict[str, jax.Array]) -> dict[str, Any]:
    """The release's losses at given noise, times and null rows; no dropout."""
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
    """Each term and the total, with several null rows and with one."""
    model = load(check.goldens, check.name.removesuffix(".loss"))
    run = jax.jit(functools.partial(_losses, model.nets))
    batch = {key: check.input(key) for key in ("text", "eps", "image_tokens", "t")}
    for suffix in ("", "_single"):
        parts = run(model.params, batch | {"null": check.input(f"null{suffix}")})
        kl = 0.01 * parts["kl"]
        if not suffix:
            check.compare("align", parts["align"], model.tolerance)
            check.compare("kl_reference", kl, model.tolerance)
        check.compare(f"flow{suffix}", parts["flow"], model.tolerance)
        total = parts["flow"] + parts["align"] + kl
        check.compare(f"total{suffix}", total, model.tolerance)


def _sample(model: Model, z_src: jax.Array, num_steps: int, scale: float) -> jax.Array:
    def run(params, z):
        velocity = samplers.guided(
            lambda *x: model.nets.dit.apply({"params": params}, *x), scale
        )
        return samplers.euler(velocity, z, num_steps, "release")

    return jax.jit(run)(model.params["dit"], z_src)


def check_sample(check: Check) -> None:
    """Euler steps at the release's times, guided."""
    model = load(check.goldens, check.name.removesuffix(".sample"))
    z_src = check.input("z0")
    found = (re.fullmatch(r"steps(\d+)_scale([\d.]+)", key) for key in check.arrays)
    stored = {(int(match[1]), float(match[2])) for match in found if match}
    for num_steps, scale in sorted(stored | set(SAMPLES)):
        key = f"steps{num_steps}_scale{scale}"
        check.compare(key, _sample(model, z_src, num_steps, scale), SAMPLE)


def _train_batch(goldens: Goldens, sizes: dict[str, Any], step: int) -> dict[str, Any]:
    rows, tokens = 4, sizes["latent"]["tokens"]
    channels, width = sizes["latent"]["channels"], sizes["clip"]["width"]
    return {
        "image_tokens": goldens.draw(f"train/x1/{step}", rows, tokens, channels),
        "text": goldens.draw(f"train/text/{step}", rows, tokens, width),
        "eps": goldens.draw(f"train/eps/{step}", rows, tokens, channels),
        "t": goldens.uniform(f"train/t/{step}", rows),
        "null": np.array([step % 2 == 0, True, False, False]),
    }


def check_train(check: Check) -> None:
    """Steps of our own training step, optimiser and average, at given draws."""
    model = load(check.goldens, check.name.removesuffix(".train"))
    num_steps = len(check.input("losses"))
    schedule = make_schedule(
        lr=4e-4, lr_end=0.0, warmup_steps=4, schedule="constant", num_steps=num_steps
    )
    optimizer = make_optimizer(
        schedule, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.03, clip_norm=None
    )

    def loss(trained, frozen, batch, key):
        parts = _losses(model.nets, trained, batch)
        return (parts["flow"] + parts["align"] + 1e-4 * parts["kl"]).mean(), {}

    step = jax.jit(
        functools.partial(train_step, loss=loss, optimizer=optimizer, ema_decay=0.9)
    )
    state, logs = make_state(model.params, optimizer, seed=0), []
    for i in range(num_steps):
        batch = _train_batch(check.goldens, model.sizes, i)
        state, scalars = step(state, {}, jax.tree.map(jnp.asarray, batch))
        logs.append((scalars["loss/total"], scalars["grad_norm"], schedule(i)))
    values, norms, rates = np.array(logs, np.float64).T
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
    for key, values in outputs.items():
        check.compare(key.replace(".", "/"), values, TRAINED)


def _tokens_first(array: jax.Array) -> jax.Array:
    return array[:, :, 0].transpose(0, 2, 1)  # [b c 1 n] -> [b n c]


def check_tokenizer(check: Check) -> None:
    """Moments and decoded images; of full sizes every 4th pixel, mean and spread."""
    model, draws = load(check.goldens, check.name), check.goldens
    tokenizer, width = model.nets.tokenizer, model.sizes["clip"]["width"]
    is_stored = model.is_tiny or "image" in check
    if is_stored:
        image, tokens, text = (check.input(k) for k in ("image", "tokens", "text"))
    else:
        side = tokenizer.image_size
        image = jnp.asarray(draws.uniform("image", 1, 3, side, side))
        shape = (1, tokenizer.channels, 1, tokenizer.tokens)
        tokens = jnp.asarray(draws.draw("tok", *shape))
        text = jnp.asarray(draws.draw("text", 1, tokenizer.tokens, width))
    posterior = model.apply("tokenizer", image.transpose(0, 2, 3, 1), method="encode")
    moments = jnp.concatenate([posterior.mean, posterior.logvar], -1)
    moments = moments.transpose(0, 2, 1)[:, :, None]  # [b 2c 1 n]
    check.compare("moments", moments, model.tolerance)

    def decode(tokens):
        image = model.apply("tokenizer", tokens, text, method="decode")
        return image.transpose(0, 3, 1, 2)

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
        check.compare("decoded_std", decoded.std(ddof=1), model.tolerance)


def check_end_to_end(check: Check) -> None:
    """Text features to an image: projector, 20 guided steps, decoder."""
    size = check.name.removeprefix("end_to_end_")
    flow = load(check.goldens, f"flowtok_{size}")
    image = load(check.goldens, f"flowtitok_{size}")
    text = check.input("text")
    posterior = flow.apply("projector", text)
    z_src = posterior.mean + posterior.std * check.input("eps")
    check.compare("z0", z_src, flow.tolerance)
    z_img = _sample(flow, z_src, 20, 2.0)
    check.compare("z1", z_img, SAMPLE)
    tokens = z_img / image.nets.tokenizer.latent_scale
    decoded = image.apply("tokenizer", tokens, text, method="decode")
    check.compare("image", decoded.transpose(0, 3, 1, 2), SAMPLE)
