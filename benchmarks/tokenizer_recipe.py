"""The tokenizer's recipe taken apart: what judges, discriminator and l-DeTok do.

    python benchmarks/tokenizer_recipe.py --data=scenes --out=runs/recipe \\
        --only=pixels,detok --seeds=0,1,2 --t2i_steps=1200
    python examples/emoji/prepare.py --out=data/emoji --size=64
    python benchmarks/tokenizer_recipe.py --data=data/emoji --out=runs/recipe_emoji

Each variant trains a tokenizer with the same steps and seed, on the demo's scenes or on
a folder with `train` and `held_out` (64 px), and is measured on pictures that it never
saw by --mode=eval: PSNR, rFID of a random Inception, share of high frequencies kept.
With --t2i_steps a short text-to-image stage is trained on top, whose pictures of
held-out captions the oracle reads. The judges are random networks, as no weights are
shipped. Finished measurements stay in --out and are not repeated; pictures.png shows
originals above the reconstructions of each variant.
"""

import argparse
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402 - after the path
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks.ablations import mean_and_spread, measure, numbers, say  # noqa: E402
from configs import demo  # noqa: E402
from flowtok_jax.data.inputs import to_uint8  # noqa: E402
from flowtok_jax.data.loader import open_source  # noqa: E402
from flowtok_jax.eval import pictures, previews  # noqa: E402
from flowtok_jax.modes import eval as evaluation  # noqa: E402
from flowtok_jax.modes import train  # noqa: E402
from flowtok_jax.perf import machine  # noqa: E402
from flowtok_jax.pipeline import FlowTok  # noqa: E402
from flowtok_jax.runtime.config import drop_overridden, for_stage  # noqa: E402
from flowtok_jax.runtime.errors import UserError  # noqa: E402
from flowtok_jax.runtime.files import read_json, to_place, write_json  # noqa: E402
from flowtok_jax.train.loop import PreemptedError  # noqa: E402
from flowtok_jax.weights.place import open_weights  # noqa: E402

LOSS = "loss.tokenizer"
# The release weighs its discriminator 0.1 beside LPIPS; beside pixels alone that would
# drown them, see docs/training.md.
GAN = {f"{LOSS}.gan.weight": 0.01, f"{LOSS}.gan.lr": 5e-4}
GAN |= {f"{LOSS}.gan.width": 32, f"{LOSS}.gan.stages": 2}
LPIPS = {f"{LOSS}.judges.lpips_weight": 0.1}
DETOK = {f"{LOSS}.noise": 3.0, f"{LOSS}.hidden": (-0.1, 0.7)}
VARIANTS = {
    "pixels": {},
    "gan": GAN,
    "gan_heavy": GAN | {f"{LOSS}.gan.weight": 0.1},
    "gan_light": GAN | {f"{LOSS}.gan.weight": 0.001},
    "lpips": LPIPS,
    "lpips_gan": LPIPS | GAN,
    "convnext": {f"{LOSS}.judges.convnext_weight": 0.1},
    "detok": DETOK,
    # Its tokens grow to ten times the deviation: the flow's are scaled back.
    "detok_scaled": DETOK | {"tokenizer.latent_scale": 0.056},
    "noise": {f"{LOSS}.noise": 3.0},
    "noise_light": {f"{LOSS}.noise": 1.0},
    "hidden": {f"{LOSS}.hidden": (-0.1, 0.7)},
}
SHOWN_METRICS = ("psnr_db", "detail_kept", "rfid", "lpips", "accuracy")
SHOWN = 8  # pictures a row


def make_config(flags: argparse.Namespace, name: str, seed: int) -> ConfigDict:
    """Returns the config of a variant's run.

    Raises:
        UserError: if the variant does not exist.
    """
    if name not in VARIANTS:
        raise UserError(f"no variant {name!r}; expected some of {', '.join(VARIANTS)}")
    config = demo.get_config()
    config.stages = ("tokenizer", "t2i") if flags.t2i_steps else ("tokenizer",)
    if flags.data != "scenes":
        _for_folder(config, flags.data)
    steps = flags.steps or config.per_stage.tokenizer.train.num_steps
    changes = {"train.seed": seed, f"{LOSS}.gan.start": steps // 2}
    changes[f"{LOSS}.gan.grid"] = config.tokenizer.image_size // 4
    changes["log.preview_every"] = 0
    changes |= VARIANTS[name]
    config.update_from_flattened_dict(changes)
    drop_overridden(config, changes)
    config.per_stage.tokenizer.train.num_steps = steps
    config.per_stage.t2i.train.num_steps = flags.t2i_steps
    return config


def _for_folder(config: ConfigDict, folder: str) -> None:
    """Fits the demo's config to captioned pictures of 64 px."""
    config.data.train = f"folder:{folder}/train"
    config.data.eval = f"folder:{folder}/held_out"
    # Reaches in 480 steps what AdamW at 2e-3 has not in 1200, see docs/training.md.
    config.optimizer.name = "muon"
    config.per_stage.tokenizer.schedule.lr = 3e-3
    config.clip.vocab_size = 4096
    config.latent.tokens = 32
    side = {"width": 160, "depth": 4, "heads": 4}
    config.tokenizer.update({"image_size": 64, "encoder": side, "decoder": side})


def run_variant(flags: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Trains and measures a variant, or reads its finished measurement."""
    folder = to_place(flags.out) / f"{name}-seed{seed}"
    file = folder / "result.json"
    if file.is_file():
        return read_json(file)
    config = make_config(flags, name, seed)
    say(f"{name}, seed {seed}: training in {folder}")
    train.train_stages(config, folder)
    result = {"variant": name, "seed": seed}
    result["seconds"] = read_json(folder / "summary.json")["seconds"]["tokenizer"]
    config.eval.samples = flags.samples
    config.eval.parts = ("tokenizer",)
    (found,) = evaluation.evaluate(config, open_weights(folder), folder)
    result["metrics"] = found["metrics"]
    flowtok = FlowTok.from_pretrained(folder, for_stage(config, config.stages[-1]))
    source = open_source(config, config.data.eval, centre=True)
    if flags.t2i_steps:
        examples = previews.load_examples(source, 512)
        result["metrics"] |= measure(flowtok, examples)
    write_json(file, result)
    return result


def draw(flags: argparse.Namespace, names: list[str]) -> None:
    """Draws held-out pictures above what each variant makes of them."""
    config = make_config(flags, names[0], flags.seeds[0])
    source = open_source(config, config.data.eval, centre=True)
    # Spread over the folder, whose neighbours look alike.
    places = np.linspace(0, len(source) - 1, SHOWN).astype(int)
    records = [source[int(i)] for i in places]
    originals = np.stack([r["image"] for r in records])
    rows = [list(originals)]
    for name in names:
        folder = to_place(flags.out) / f"{name}-seed{flags.seeds[0]}"
        flowtok = FlowTok.from_pretrained(folder)
        tokens = flowtok.encode_image(originals.astype(np.float32) / 255).mean
        copies = flowtok.decode_image(tokens, [r["caption"] for r in records])
        rows.append(list(to_uint8(np.asarray(copies))))
    pictures.save_png(to_place(flags.out) / "pictures.png", pictures.grid(rows))


def markdown(report: dict[str, Any]) -> str:
    """Formats the table of variants."""
    runs = report["runs"]
    found = dict.fromkeys(key for run in runs for key in run["metrics"])
    names = [key for key in found if key.startswith(SHOWN_METRICS)]
    cores = report["machine"]["cores"]
    lines = [
        f"Made by `{report['command']}` on {cores} core{'s' * (cores > 1)} of "
        f"{report['machine']['processor']}.",
        "",
        f"| variant | changes | seeds | minutes | {' | '.join(names)} |",
        "|---" * (4 + len(names)) + "|",
    ]
    for name in dict.fromkeys(run["variant"] for run in runs):
        own = [run for run in runs if run["variant"] == name]
        changes = ", ".join(
            f"`{k.removeprefix(LOSS + '.')}={v}`" for k, v in VARIANTS[name].items()
        )
        cells = [mean_and_spread([run["metrics"][key] for run in own]) for key in names]
        minutes = np.mean([run["seconds"] for run in own]) / 60
        lines.append(
            f"| {name} | {changes or 'none'} | {len(own)} | {minutes:.1f} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="scenes", help="scenes, or a folder with train and held_out")
    add("--out", default="runs/recipe", help="folder of all results")
    add("--steps", type=int, default=0, help="of the tokenizer; 0: the demo's")
    add("--t2i_steps", type=int, default=0, help="of a t2i stage on top; 0: none")
    add("--seeds", type=numbers(int), default=(0,), help="as 0,1,2")
    add("--only", default="pixels,gan", help="variants, separated by commas")
    add("--samples", type=int, default=400, help="held-out pictures measured")
    return parser.parse_args(argv)


def run(argv: list[str]) -> str:
    """Makes the missing measurements and writes the report; returns its table."""
    flags = parse(argv)
    names = flags.only.split(",")
    report = {
        "command": " ".join(["python", "benchmarks/tokenizer_recipe.py", *argv]),
        "machine": machine.describe_machine(jax.devices()),
        "runs": [run_variant(flags, n, s) for s in flags.seeds for n in names],
    }
    out = to_place(flags.out)
    write_json(out / "recipe.json", report)
    table = markdown(report)
    (out / "recipe.md").write_text(table)
    draw(flags, names)
    return table


def main() -> int:
    """Runs the command and returns its exit status."""
    try:
        sys.stdout.write(run(sys.argv[1:]))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (KeyboardInterrupt, PreemptedError):
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
