"""Worker of against_release.py: our code, as FlowTok and --mode=bench run it.

Reads spec.json, inputs.npz and the release's weights of the folder that is its last
argument, and writes its outputs there.
"""

import functools
import pathlib
import sys
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.duel import Entry, serve  # noqa: E402 - after the path

WEIGHTS = ("align_weight", "kl_weight")  # of losses, in the config


class Ids:
    """Vocabulary whose prompts are spelled-out ids: both sides get the same ones."""

    def __init__(self, size: int):
        self._size = size

    def __len__(self) -> int:
        return self._size

    def encode(self, prompts: list[str]) -> np.ndarray:
        """Reads the ids of prompts."""
        return np.array([prompt.split() for prompt in prompts], np.int32)


def _part(nets: Any, params: Any, given: Any, *, kind: str) -> dict[str, Any]:
    """Runs one network."""

    def apply(group, name, *inputs, **options):
        net = getattr(nets, name)
        return net.apply({"params": params[group][name]}, *inputs, **options)

    if kind == "dit":
        velocity = apply("t2i", "dit", given["x"], given["t"], given["null"])
        return {"velocity": velocity}
    if kind == "clip":
        return {"features": apply("clip", "clip", given["ids"])}
    if kind == "decoder":
        inputs = given["tokens"], given["text"]
        return {"image": apply("tokenizer", "tokenizer", *inputs, method="decode")}
    if kind == "encoder":
        image = given["image"]
        posterior = apply("tokenizer", "tokenizer", image, method="encode")
    else:
        posterior = apply("t2i", "projector", given["text"])
    return {"mean": posterior.mean, "logvar": posterior.logvar}


def _gradient(nets: Any, params: Any, given: Any, *, weights: Any) -> dict[str, Any]:
    """Computes a training step's losses and gradient on draws that are given."""
    import jax
    import optax

    from flowtok_jax.convert.checks import release_losses

    text = nets.clip.apply({"params": params["clip"]["clip"]}, given["ids"])

    def loss(trained):
        parts = release_losses(nets, trained, given | {"text": text})
        parts = {
            "flow": parts["flow"].mean(),
            "align": weights["align_weight"] * parts["align"],
            "kl": weights["kl_weight"] * parts["kl"],
        }
        return sum(parts.values()), parts

    grads, parts = jax.grad(loss, has_aux=True)(params["t2i"])
    return parts | {"grad_norm": optax.tree.norm(grads)}


def _distilled(flowtok: Any) -> Any:
    """Adds a distilled flow to weights, as distillation begins with it."""
    import jax

    from flowtok_jax.pipeline import FlowTok
    from flowtok_jax.tasks.distill import copy_teacher

    teacher = {"teacher": flowtok.params["t2i"]}
    student = copy_teacher(flowtok.nets, teacher, jax.random.key(0))
    params = flowtok.params | {"t2i_distilled": student}
    return FlowTok(flowtok.nets, params, flowtok.vocabulary)


def make(
    folder: pathlib.Path, spec: dict[str, Any], inputs: dict[str, np.ndarray]
) -> Entry:
    """Makes the program that the specification names, compiled."""
    import jax

    from flowtok_jax.convert.groups import convert
    from flowtok_jax.perf import work
    from flowtok_jax.pipeline import FlowTok
    from flowtok_jax.runtime.compilation_cache import use_compilation_cache
    from flowtok_jax.runtime.config import config_from_json
    from flowtok_jax.weights.safetensors import read_safetensors

    use_compilation_cache()
    config = config_from_json((folder / "config.json").read_text())
    networks = ("dit", "projector", "clip")
    heads = {name: config[name].heads for name in networks}
    leaves, tree = jax.tree.flatten(
        {
            path.stem: convert(path.stem, read_safetensors(path), heads)
            for path in sorted(folder.glob("*.safetensors"))
        }
    )
    for i, leaf in enumerate(leaves):  # one by one: H's weights twice are too much
        leaves[i] = jax.device_put(leaf)
    params = jax.tree.unflatten(tree, leaves)
    flowtok = FlowTok.from_config(config, params, Ids(config.clip.vocab_size))
    del params, leaves
    about = {"jax": jax.__version__, "layout": flowtok.nets.dit.layout}
    if spec["kind"] == "sampler":
        prompts = [" ".join(map(str, row)) for row in inputs["ids"]]
        call = functools.partial(flowtok.text_to_image, prompts, **spec["sample"])
        timed = call
        if spec["calls"]:
            draw = _distilled(flowtok).text_to_image
            steps = spec["calls"]
            timed = functools.partial(draw, prompts, solver="average", num_steps=steps)
        return Entry(lambda: {"image": call()}, timed, about)
    given = jax.device_put(inputs)
    if spec["kind"] == "train":
        weights = {
            name: config.loss.t2i[name] for name in ("align_weight", "kl_weight")
        }
        run = functools.partial(_gradient, flowtok.nets, weights=weights)
        answer = jax.device_get(jax.jit(run)(flowtok.params, given))
        del flowtok, given
        maker = work.WeightMaker(None)  # values change no time
        step = work.training_work(config, spec["rows"], jax.devices(), maker)
        return Entry(lambda: answer, step.start(), about)
    run = functools.partial(_part, flowtok.nets, kind=spec["kind"])
    program = jax.jit(run).lower(flowtok.params, given).compile()

    def call():
        return jax.block_until_ready(program(flowtok.params, given))

    return Entry(lambda: jax.device_get(call()), call, about)


if __name__ == "__main__":
    serve("ours", make)
