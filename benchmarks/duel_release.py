"""Worker of against_release.py: the authors' release, in PyTorch, run as it is.

Reads spec.json and inputs.npz of the folder that is its last argument; writes its
random weights there, which our side converts, and its outputs. It imports nothing of
ours but `duel`, and nothing of the release is changed on disk. What is put in place of
its own at run time:

- `torch.utils.checkpoint` around the DiT's blocks, unless spec["as_released"]
- draws of noise, times and null rows, by those of the inputs
- `libs.model.rmsnorm`, which needs packages for GPUs and is not used
- the declarations of torchvision's compiled operators, where PyTorch's CPU build cannot
  load them; none is used
"""

import copy
import pathlib
import sys
import types
from typing import Any
from unittest import mock

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks.duel import Entry, serve  # noqa: E402 - after the path

SPREAD = 0.02  # deviation of what is added to parameters that start constant
OPERATORS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
CLIP = "ViT-L-14-336"  # as the release's train_t2i.py names it
# Names of the text tower by open_clip and by Hugging Face.
TOWER = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.": "final_layer_norm.",
    "transformer.resblocks.": "encoder.layers.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def load_torchvision() -> Any:
    """Imports torchvision, its operators declared if they cannot be loaded.

    Returns:
        What holds the declarations, to be kept.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [n for n in sys.modules if n.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + OPERATORS)
        import torchvision  # noqa: F401

        return library


class Release:
    """The release's networks of a config, with random weights that are stored."""

    def __init__(self, folder: pathlib.Path, spec: dict[str, Any]):
        import torch

        self._folder = folder
        self._config = spec["config"]
        self._spec = spec
        self._library = load_torchvision()
        self.torch = torch
        torch.manual_seed(spec["seed"])

    def _store(self, group: str, state: dict[str, Any]) -> None:
        """Writes the state dict of a group, for the other side to convert."""
        from safetensors.torch import save_file

        state = {name: array.contiguous() for name, array in state.items()}
        save_file(state, self._folder / f"{group}.safetensors")

    def _ready(self, net: Any) -> Any:
        """Spreads constant parameters, that no output is zero; stops dropout."""
        with self.torch.no_grad():
            for parameter in net.parameters():
                constant = parameter.ndim and parameter.min() == parameter.max()
                if parameter.requires_grad and constant:
                    noise = self.torch.randn_like(parameter)
                    parameter.add_(noise, alpha=SPREAD)
        return net.eval()

    def _cast(self, net: Any) -> Any:
        return net.to(getattr(self.torch, self._spec["dtype"]))

    def flow(self) -> Any:
        """Makes FlowTok: the DiT, the text projector and the align head."""
        from libs.model import flowtok_t2i

        told = self._config
        projector = told["projector"]
        text = types.SimpleNamespace(
            num_blocks=projector["depth"],
            hidden_dim=projector["mlp_width"],
            num_attention_heads=projector["heads"],
            dropout_prob=projector["dropout"],
            clip_loss_weight=0.0,
        )
        arguments = types.SimpleNamespace(
            channels=told["latent"]["channels"],
            clip_dim=told["clip"]["width"],
            textVAE=text,
            use_t2t_temperature=True,
        )
        block = flowtok_t2i.DiTBlock
        if not self._spec["as_released"]:
            block.forward = block._forward
        names = {"hidden_size": "width", "depth": "depth", "num_heads": "heads"}
        sizes = {theirs: told["dit"][ours] for theirs, ours in names.items()}
        tokens = told["latent"]["tokens"]
        net = flowtok_t2i.FlowTok(arguments, num_latent_tokens=tokens, **sizes)
        self._store("t2i", self._ready(net).state_dict())
        # The embedding of times is float32, which a bfloat16 layer refuses.
        net.t_embedder.mlp.register_forward_pre_hook(
            lambda mlp, inputs: (inputs[0].to(mlp[0].weight.dtype),)
        )
        return self._cast(net)

    def tokenizer(self) -> Any:
        """Makes FlowTiTok, of one of the sizes that it has names for."""
        from libs.flowtitok import FlowTiTok
        from ml_collections import ConfigDict

        told = self._config["tokenizer"]
        names = {512: "small", 768: "base", 1024: "large"}
        model = {
            "vit_enc_model_size": names[told["encoder"]["width"]],
            "vit_dec_model_size": names[told["decoder"]["width"]],
            "vit_enc_patch_size": told["patch"],
            "vit_dec_patch_size": told["patch"],
            "num_latent_tokens": self._config["latent"]["tokens"],
            "token_size": self._config["latent"]["channels"],
            "text_context_length": self._config["latent"]["tokens"],
            "text_embed_dim": self._config["clip"]["width"],
            "use_rmsnorm": False,
            "use_swiglu": True,
        }
        sizes = {"vq_model": model, "dataset": {"crop_size": told["image_size"]}}
        net = self._ready(FlowTiTok(ConfigDict(sizes)))
        self._store("tokenizer", net.state_dict())
        return self._cast(net)

    def clip(self) -> Any:
        """Makes open_clip's model that the release loads, its vision tower tiny."""
        import open_clip

        config = open_clip.get_model_config(CLIP)
        told = self._config["clip"]
        names = {"width": "width", "layers": "depth", "heads": "heads"}
        config["text_cfg"] |= {theirs: told[ours] for theirs, ours in names.items()}
        config["text_cfg"]["vocab_size"] = told["vocab_size"]
        config["text_cfg"]["context_length"] = self._config["latent"]["tokens"]
        config["vision_cfg"] |= {"layers": 1, "width": 64}
        # OpenAI's weights set quick-GELU.
        net = open_clip.CLIP(**config, quick_gelu=True)
        del net.visual
        net.transformer.batch_first = False  # as in train_t2i.py
        net = self._ready(net).requires_grad_(False)
        self._store("clip", tower_state(net.state_dict()))
        return net


def tower_state(state: dict[str, Any]) -> dict[str, Any]:
    """Returns open_clip's state dict of a text tower by Hugging Face's names."""
    found = {}
    for name, array in state.items():
        for theirs, ours in TOWER.items():
            name = name.replace(theirs, ours)
        for ending in ("weight", "bias"):
            if name.endswith(f".attn.in_proj_{ending}"):
                block = name.removesuffix(f".attn.in_proj_{ending}")
                parts = zip("qkv", array.chunk(3), strict=True)
                for part, piece in parts:
                    path = f"text_model.{block}.self_attn.{part}_proj.{ending}"
                    found[path] = piece
        if name.startswith(("embeddings.", "encoder.", "final_")) and (
            "in_proj" not in name
        ):
            found[f"text_model.{name}"] = array
    return found


def text_features(tower: Any, ids: Any) -> Any:
    """Computes what the release's train_t2i.py does with its tower."""
    x = tower.token_embedding(ids) + tower.positional_embedding
    x = tower.transformer(x.permute(1, 0, 2), attn_mask=tower.attn_mask)
    return tower.ln_final(x.permute(1, 0, 2))


def channels_last(grid: Any) -> Any:
    """Returns a token grid [b c 1 n] as tokens [b n c]."""
    return grid.squeeze(2).permute(0, 2, 1)


def dit_program(release: Release, given: dict[str, Any]) -> Any:
    """Makes one forward pass of the DiT."""
    net = release.flow()
    dtype = net.x_embedder.weight.dtype
    x, t, null = (given[name] for name in ("x", "t", "null"))
    x = x.to(dtype)
    return lambda: {"velocity": net(x, t=t, null_indicator=null)[0]}


def projector_program(release: Release, given: dict[str, Any]) -> Any:
    """Makes the text projector, with its sample."""
    net = release.flow()

    def run():
        _, mean, logvar = net(given["text"], text_encoder=True)
        return {"mean": mean, "logvar": logvar}

    return run


def clip_program(release: Release, given: dict[str, Any]) -> Any:
    """Makes the text tower."""
    tower = release.clip()
    return lambda: {"features": text_features(tower, given["ids"])}


def encoder_program(release: Release, given: dict[str, Any]) -> Any:
    """Makes the tokenizer's encoder, with its sample."""
    net = release.tokenizer()
    image = given["image"].permute(0, 3, 1, 2).contiguous()

    def run():
        _, posterior = net.encode(image)
        moments = {"mean": posterior.mean, "logvar": posterior.logvar}
        return {name: channels_last(x) for name, x in moments.items()}

    return run


def decoder_program(release: Release, given: dict[str, Any]) -> Any:
    """Makes the tokenizer's decoder."""
    net = release.tokenizer()
    tokens = given["tokens"].permute(0, 2, 1).unsqueeze(2).contiguous()

    def run():
        return {"image": net.decode_tokens(tokens, given["text"]).permute(0, 2, 3, 1)}

    return run


def sampler_program(release: Release, given: dict[str, Any]) -> Any:
    """Makes the way from ids to images, as train_t2i.py draws previews."""
    from diffusion.flow_matching import ODEEulerFlowMatchingSolver

    tower = release.clip()
    net = release.flow()
    tokenizer = release.tokenizer()
    options = release._spec["sample"]
    latent_scale = release._config["tokenizer"]["latent_scale"]
    torch = release.torch

    def run():
        text = text_features(tower, given["ids"])
        with mock.patch.object(torch, "randn_like", return_value=given["eps"]):
            z, _, _ = net(text, text_encoder=True)
        solver = ODEEulerFlowMatchingSolver(
            net, step_size_type="step_in_dsigma", guidance_scale=options["scale"]
        )
        z, _ = solver.sample(
            x_T=z,
            batch_size=len(z),
            sample_steps=options["num_steps"],
            unconditional_guidance_scale=options["scale"],
            has_null_indicator=True,
        )
        raw = z.permute(0, 2, 1).unsqueeze(2) / latent_scale
        image = tokenizer.decode_tokens(raw, text_guidance=text)
        return {"image": torch.clamp(image, 0.0, 1.0).permute(0, 2, 3, 1)}

    return run


class Training:
    """The release's training step, and its loss on draws that are given."""

    def __init__(self, release: Release, given: dict[str, Any]):
        import utils  # the release's
        from diffusion.flow_matching import FlowMatching
        from libs.flowtitok import DiagonalGaussianDistribution

        self.torch = release.torch
        self._given = given
        self._posterior = DiagonalGaussianDistribution
        self._tower = release.clip()
        self._net = release.flow()
        told = release._config
        self._latent_scale = told["tokenizer"]["latent_scale"]
        rule = told["optimizer"]
        self._optimizer = utils.get_optimizer(
            utils.trainable_parameters(self._net),
            name="adamw",
            lr=told["schedule"]["lr"],
            weight_decay=rule["weight_decay"],
            betas=tuple(rule["betas"]),
        )
        self._state = utils.TrainState(
            self._optimizer,
            utils.get_lr_scheduler(
                self._optimizer,
                "customized",
                warmup_steps=told["schedule"]["warmup_steps"],
            ),
            step=0,
            nnet=self._net,
            nnet_ema=copy.deepcopy(self._net),
        )
        self._matching = FlowMatching()
        loss = told["loss"]["t2i"]
        self._all_config = types.SimpleNamespace(
            losses=types.SimpleNamespace(
                contrastive_loss_weight=loss["align_weight"],
                kld_loss_weight=loss["kl_weight"],
            ),
            nnet=types.SimpleNamespace(
                model_args=types.SimpleNamespace(cfg_indicator=loss["null_rate"])
            ),
        )
        if release._spec["as_released"]:
            self.torch.autograd.set_detect_anomaly(True)

    def answer(self) -> dict[str, Any]:
        """Computes the loss and its gradient's norm, without dropout."""
        given = self._given
        draws = np.where(given["null"], 0.0, 1.0).tolist()
        with (
            mock.patch.object(self.torch, "randn_like", return_value=given["eps"]),
            mock.patch("random.random", side_effect=draws),
        ):
            loss, parts = self._matching.p_losses_textVAE_flowtok(
                given["image_tokens"].clone(),
                self._features(),
                given["t"],
                self._net.eval(),
                self._all_config,
            )
        self._optimizer.zero_grad()
        loss.mean().backward()
        trained = [p for p in self._net.parameters() if p.requires_grad]
        squares = [p.grad.square().sum() for p in trained]
        return {
            "flow": parts["diff_loss"].mean().detach(),
            "align": parts["contrastive_loss"].detach(),
            "kl": parts["kld_loss"].detach(),
            "grad_norm": sum(squares).sqrt(),
        }

    def _features(self) -> Any:
        with self.torch.no_grad():
            return text_features(self._tower, self._given["ids"])

    def call(self) -> None:
        """Makes one step as train_t2i.py does, its batch on the machine already."""
        self._net.train()
        self._optimizer.zero_grad()
        moments = self._given["moments"].permute(0, 2, 1).unsqueeze(2)
        tokens = self._posterior(moments).sample().mul_(self._latent_scale)
        loss, _ = self._matching(
            channels_last(tokens),
            self._net,
            cond=self._features(),
            all_config=self._all_config,
        )
        loss.mean().backward()
        self._optimizer.step()
        self._state.lr_scheduler.step()
        self._state.ema_update()


PROGRAMS = {
    "dit": dit_program,
    "projector": projector_program,
    "clip": clip_program,
    "encoder": encoder_program,
    "decoder": decoder_program,
    "sampler": sampler_program,
}


def make(
    folder: pathlib.Path, spec: dict[str, Any], inputs: dict[str, np.ndarray]
) -> Entry:
    """Makes the program that the specification names."""
    sys.path.insert(0, spec["release"])
    sys.modules["libs.model.rmsnorm"] = mock.MagicMock()
    release = Release(folder, spec)
    torch = release.torch
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if spec["kind"] == "train":
        training = Training(release, given)
        return Entry(lambda: arrays(training.answer()), training.call, about)
    program = PROGRAMS[spec["kind"]](release, given)

    def run():
        with torch.no_grad():
            return program()

    return Entry(lambda: arrays(run()), run, about)


def arrays(outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns tensors as float32 arrays."""
    return {name: x.float().numpy() for name, x in outputs.items()}


if __name__ == "__main__":
    serve("release", make)
