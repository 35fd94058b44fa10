"""Makes a folder of goldens of other sizes: the authors' own training of a tokenizer.

    PYTHONPATH=. python tests/goldens/make_titok.py --sizes=SIZES.json --out=DIR \
        --tokenizer=FlowTok --recipe=1d-tokenizer

Runs two releases from their folders and copies no line of them: TACJu/FlowTok has the
tokenizer; bytedance/1d-tokenizer the losses, discriminator, optimisers and schedules.
Needs torch, torchvision, einops, omegaconf and huggingface_hub. Tests never run it.

SIZES.json is a golden.json with `salt` and `titok_train`, and with the sizes of judges
where they are not the published ones: `convnext` (depths, widths, classes), `lpips`
(widths of VGG16's layers), `discriminator` (width).
"""

import argparse
import functools
import json
import pathlib
import re
import sys
import types
import zlib
from typing import Any
from unittest import mock

import numpy as np
import torch
from omegaconf import OmegaConf

from flowtok_jax.convert.goldens import Goldens
from flowtok_jax.convert.recipe import STORED

# What the releases import and training does not use.
ABSENT = (
    "libs.model.rmsnorm",
    "open_clip",
    "data",
    "demo_util",
    "evaluator",
    "torchinfo",
    "modeling.titok",
    "modeling.tatitok",
    "modeling.maskgit",
    "modeling.rar",
    "modeling.maskgen",
    "utils.viz_utils",
)
PUBLISHED = {
    "convnext": {
        "depths": [3, 3, 27, 3],
        "widths": [96, 192, 384, 768],
        "classes": 1000,
    },
    "lpips": {"widths": [64, 128, 256, 512, 512]},
    "discriminator": {"width": 128},
}
VGG = (2, 2, 3, 3, 3)  # convolutions of each layer


def load_changed(
    folder: pathlib.Path, name: str, changes: dict[str, Any]
) -> types.ModuleType:
    """Imports a module of a release with other values in some of its assignments."""
    place = folder / f"{name.replace('.', '/')}.py"
    code = place.read_text()
    for target, value in changes.items():
        pattern = rf"(self\.{target} =) [\[{{].*?[\]}}]"
        code, count = re.subn(pattern, rf"\1 {value}", code, flags=re.DOTALL)
        assert count, f"{place} sets no {target}"
    module = types.ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    sys.modules[name] = module
    exec(compile(code, place, "exec"), vars(module))
    return module


def load_tokenizer(folder: pathlib.Path, told: dict[str, Any]) -> torch.nn.Module:
    """Makes the release's tokenizer of other sizes than the three that it knows."""
    sys.path.insert(0, str(folder))
    names = {"width": "width", "num_layers": "depth", "num_heads": "heads"}
    tables = {
        attribute: {"small": told["encoder"][name], "base": told["decoder"][name]}
        for attribute, name in names.items()
    }
    load_changed(folder, "libs.model.blocks", tables)
    from libs.flowtitok import FlowTiTok

    model = {
        "vit_enc_model_size": "small",
        "vit_dec_model_size": "base",
        "vit_enc_patch_size": told["patch_size"],
        "vit_dec_patch_size": told["patch_size"],
        "num_latent_tokens": told["tokens"],
        "token_size": told["channels"],
        "text_context_length": told["tokens"],
        "text_embed_dim": told["text_feature_dim"],
        "use_rmsnorm": False,
        "use_swiglu": True,
    }
    sizes = {"vq_model": model, "dataset": {"crop_size": told["image_size"]}}
    return FlowTiTok(OmegaConf.create(sizes))


def make_convnext(depths: list[int], widths: list[int], classes: int) -> Any:
    """Makes torchvision's ConvNeXt of these sizes."""
    from torchvision.models import convnext

    stages = zip(widths, [*widths[1:], None], depths, strict=True)
    settings = [convnext.CNBlockConfig(*stage) for stage in stages]
    return convnext.ConvNeXt(settings, num_classes=classes).eval()


def make_vgg(widths: list[int]) -> Any:
    """Makes torchvision's VGG16 with layers of these widths."""
    from torchvision.models import vgg

    layers = zip(widths, VGG, strict=True)
    settings = [x for width, count in layers for x in (*[width] * count, "M")]
    return vgg.VGG(vgg.make_layers(settings), num_classes=1)


def make_config(told: dict[str, Any]) -> Any:
    """Makes the release's config of the values of golden.json."""
    training = told["training"]
    rates = {"learning_rate": training["lr"], "end_lr": training["lr_end"]}
    beta1, beta2 = training["betas"]
    return OmegaConf.create(
        {
            "model": {"vq_model": {"quantize_mode": "vae", "finetune_decoder": False}},
            "losses": {
                "discriminator_start": training["discriminator_start"],
                "quantizer_weight": 1.0,
                "discriminator_factor": 1.0,
                "discriminator_weight": training["gan_weight"],
                "perceptual_loss": "lpips-convnext_s-1.0-0.1",
                "perceptual_weight": 1.1,
                "reconstruction_loss": "l2",
                "reconstruction_weight": 1.0,
                "lecam_regularization_weight": training["lecam_weight"],
                "lecam_ema_decay": training["lecam_decay"],
                "kl_weight": training["kl_weight"],
            },
            "optimizer": {
                "name": "adamw",
                "params": {
                    "learning_rate": training["lr"],
                    "discriminator_learning_rate": training["lr"],
                    "beta1": beta1,
                    "beta2": beta2,
                    "weight_decay": training["weight_decay"],
                },
            },
            "lr_scheduler": {
                "scheduler": "cosine",
                "params": rates | {"warmup_steps": training["warmup_steps"]},
            },
            "training": {"max_train_steps": training["steps"]},
        }
    )


def load_loss(folder: pathlib.Path, config: Any, sizes: dict[str, Any]) -> Any:
    """Makes the release's loss with networks of these sizes, none of them trained."""
    sys.path.insert(0, str(folder))
    widths = sizes["lpips"]["widths"]
    import modeling.modules

    lpips = load_changed(folder, "modeling.modules.lpips", {"chns": widths})
    modeling.modules.perceptual_loss.LPIPS = lpips.LPIPS
    nets = {
        "vgg16": lambda **_: make_vgg(widths),
        "convnext_small": lambda **_: make_convnext(**sizes["convnext"]),
    }
    losses = modeling.modules.losses
    net = functools.partial(
        losses.NLayerDiscriminator, hidden_channels=sizes["discriminator"]["width"]
    )
    with (
        mock.patch.multiple(lpips.models, **nets),
        mock.patch.object(losses, "NLayerDiscriminator", net),
        mock.patch.object(lpips.LPIPS, "load_pretrained"),
    ):
        return losses.ReconstructionLoss_Single_Stage(config)


def fill(goldens: Goldens, name: str, net: torch.nn.Module, drops: str = "") -> None:
    """Gives a network the weights of the rule, and writes its manifest."""
    shapes = {
        key: tuple(x.shape)
        for key, x in net.state_dict().items()
        if not (drops and re.search(drops, key))
    }
    text = json.dumps(shapes, indent=None if len(shapes) > 99 else 1)
    (goldens.folder / f"{name}.manifest.json").write_text(text + "\n")
    fixed = dict(net.named_buffers())
    weights = {
        key: torch.tensor(goldens.weight(key, shape))
        for key, shape in shapes.items()
        if key not in fixed
    }
    net.load_state_dict(net.state_dict() | weights)


def check_convnext(goldens: Goldens, judge: Any) -> dict[str, np.ndarray]:
    """Computes the arrays of convnext.npz."""
    convnext = judge.convnext
    images = {
        "logits": ("convnext_image", 2, 224),
        "96": ("convnext_small_image", 2, 96),
        "256": ("convnext_big_image", 1, 256),
    }
    arrays = {}
    for key, (name, rows, side) in images.items():
        image = torch.tensor(goldens.uniform(name, rows, 3, side, side))
        if key != "logits":
            image = torch.nn.functional.interpolate(
                image, size=224, mode="bilinear", align_corners=False, antialias=True
            )
            arrays[f"resized_{key}"] = image[:, :, ::7, ::7]
        logits = convnext((image - judge.imagenet_mean) / judge.imagenet_std)
        arrays[key if key == "logits" else f"logits_from_{key}px"] = logits
    return {key: x.detach().numpy() for key, x in arrays.items()}


class Recipe:
    """The release's training of a tokenizer and of a discriminator, step by step."""

    def __init__(self, goldens: Goldens, model: Any, loss: Any, config: Any):
        import utils.train_utils as recipe

        self.told = goldens.value("titok_train")
        self.goldens = goldens
        self.model = model.train()
        self.loss = loss
        # For the logger and for accelerate.
        two = mock.MagicMock(), mock.MagicMock(num_processes=1)
        nets = model, loss, "tatitok"
        self.optimizers = recipe.create_optimizer(config, two[0], *nets)
        self.rates = recipe.create_lr_scheduler(config, *two, *self.optimizers)
        self.seen: dict[str, list] = {"lpips": [], "convnext": []}
        for name, values in self.seen.items():
            net = getattr(loss.perceptual_loss, name)
            net.register_forward_hook(lambda *x, values=values: values.append(x[-1]))

    def given(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draws the images, text features and noise of a step."""
        told = self.told
        rows = told["training"]["batch"]
        side = told["image_size"]
        shapes = {
            "text": (rows, told["tokens"], told["text_feature_dim"]),
            "eps": (rows, told["channels"], 1, told["tokens"]),
        }
        image = self.goldens.uniform(f"titok_train/image/{step}", rows, 3, side, side)
        draws = (
            self.goldens.draw(f"titok_train/{name}/{step}", *shape)
            for name, shape in shapes.items()
        )
        return tuple(map(torch.tensor, (image, *draws)))

    def learn(self, which: int, value: torch.Tensor, net: Any) -> dict[str, float]:
        """Makes the step of one optimiser, and of its schedule."""
        optimizer = self.optimizers[which]
        rate = optimizer.param_groups[0]["lr"]
        value.backward()
        clip = self.told["training"]["clip_norm"]
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        self.rates[which].step()
        optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm.item(), "lr": rate}

    def step(self, number: int) -> dict[str, float]:
        """Makes a step of both networks, and returns its values."""
        image, text, eps = self.given(number)
        posterior = self.model.quantize(
            self.model.encoder(image, self.model.latent_tokens)
        )
        self.made = self.model.decoder(posterior.mean + posterior.std * eps, text)
        value, terms = self.loss(image, self.made, posterior, number, "generator")
        one, two = self.seen["convnext"]
        values = {
            "total": terms["total_loss"],
            "reconstruction": terms["reconstruction_loss"],
            "perceptual": terms["perceptual_loss"],
            "kl": terms["kl_loss"],
            "gan": terms["weighted_gan_loss"],
            "lpips": self.seen["lpips"][0].mean(),
            "convnext": (one - two).square().mean(),
        }
        for seen in self.seen.values():
            seen.clear()
        values |= self.learn(0, value, self.model)
        judged = {"discriminator_loss", "lecam_loss", "logits_real", "logits_fake"}
        terms = dict.fromkeys(judged, 0.0)
        own = {"grad_norm": 0.0, "lr": 0.0}
        if self.loss.should_discriminator_be_trained(number):
            value, terms = self.loss(image, self.made, {}, number, "discriminator")
            own = self.learn(1, value, self.loss)
        values |= {name.removesuffix("_loss"): x for name, x in terms.items()}
        values |= {f"discriminator_{name}": x for name, x in own.items()}
        return {name: float(x) for name, x in values.items()}

    def run(self) -> dict[str, np.ndarray]:
        """Computes the arrays of titok_train.npz."""
        logs = [self.step(i) for i in range(self.told["training"]["steps"])]
        arrays = {name: np.array([log[name] for log in logs]) for name in logs[0]}
        nets = {"tokenizer": self.model, "discriminator": self.loss.discriminator}
        for kind, net in nets.items():
            for name, x in net.named_parameters():
                if STORED.fullmatch(f"{kind}/{name}"):
                    arrays[f"{kind}/{name}"] = x.detach().numpy()
        arrays["lecam_real"] = self.loss.ema_real_logits_mean.numpy()
        arrays["lecam_fake"] = self.loss.ema_fake_logits_mean.numpy()
        arrays["last_reconstruction"] = self.made.detach()[:, :, ::4, ::4].numpy()
        return arrays

    def decayed(self) -> dict[str, list[str]]:
        """Names of the tokenizer's arrays, by whether they decay."""
        names = {id(x): name for name, x in self.model.named_parameters()}
        groups = self.optimizers[0].param_groups
        lists = [sorted(names[id(x)] for x in group["params"]) for group in groups]
        return dict(zip(("not_decayed", "decayed"), lists, strict=True))


def start_folder(out: pathlib.Path, sizes: dict[str, Any]) -> Goldens:
    """Writes golden.json and reads it."""
    out.mkdir(parents=True, exist_ok=True)
    name = "blocks.0.attn.qkv.weight"
    seed = zlib.crc32(f"{sizes['salt']}/{name}".encode())
    draws = np.random.Generator(np.random.PCG64(seed)).standard_normal(5, np.float32)
    told = {
        "salt": sizes["salt"],
        "rule_check": {"name": name, "first_5_draws": draws.tolist()},
        "titok_train": sizes["titok_train"],
        "files": ["convnext.npz", "titok_train.npz"],
    }
    (out / "golden.json").write_text(json.dumps(told, indent=1) + "\n")
    return Goldens(out)


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("sizes", "out", "tokenizer", "recipe"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    flags = parser.parse_args()
    sizes = PUBLISHED | json.loads(flags.sizes.read_text())
    goldens = start_folder(flags.out, sizes)
    sys.modules |= {name: mock.MagicMock() for name in ABSENT}
    told = sizes["titok_train"]
    config = make_config(told)
    model = load_tokenizer(flags.tokenizer, told)
    loss = load_loss(flags.recipe, config, sizes)
    fill(goldens, "titok_train", model, drops=r"freqs_(cos|sin)")
    fill(goldens, "discriminator", loss.discriminator)
    fill(goldens, "lpips", loss.perceptual_loss.lpips)
    fill(goldens, "convnext", loss.perceptual_loss.convnext)
    judged = check_convnext(goldens, loss.perceptual_loss)
    np.savez(flags.out / "convnext.npz", **judged)
    recipe = Recipe(goldens, model, loss, config)
    text = json.dumps(recipe.decayed(), indent=0)
    (flags.out / "titok_train.decay.json").write_text(text + "\n")
    np.savez(flags.out / "titok_train.npz", **recipe.run())


if __name__ == "__main__":
    main()
