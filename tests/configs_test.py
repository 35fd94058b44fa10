"""Every config builds, and has no key that nothing reads."""

import functools
import inspect
import json
import pathlib
import re
import runpy

import pytest

import flowtok_jax
from configs import default
from flowtok_jax.data.transforms import Filters, ImageTransform
from flowtok_jax.models.build import make_nets
from flowtok_jax.models.clip import ClipText
from flowtok_jax.models.dit import AverageDiT, DiT, SharedDiT
from flowtok_jax.models.lora import LoraOptions
from flowtok_jax.models.text import AlignHead, TextDecoder, TextProjector
from flowtok_jax.models.tokenizer import Decoder, Encoder, Tokenizer
from flowtok_jax.modes.bench import BenchOptions
from flowtok_jax.pipeline import SampleOptions
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.tasks import TASKS, abstract_group, distill, i2t, networks_of, t2i
from flowtok_jax.tasks.adversarial import GanOptions
from flowtok_jax.tasks.optimizer import MuonOptions, make_optimizer, make_schedule
from flowtok_jax.tasks.tokenizer import JudgeOptions

CONFIGS = pathlib.Path(default.__file__).parent
PACKAGE = pathlib.Path(flowtok_jax.__file__).parent

# file -> its arguments; "" is none
STAGES = ("", "1", "2", "512")
ARGUMENTS = {
    **dict.fromkeys(("s", "b", "l", "xl", "h"), STAGES),
    "default": ("",),
    "tokenizer": ("", "256", "512", "256_detok", "decoder"),
    "i2t": ("", "text_tokenizer", "i2t"),
    "finetune": ("", "t2i", "i2t", "both", "lora", "lora_i2t", "lora_both"),
    "both": ("", "demo", "emoji", "s", "b", "l", "xl", "h"),
    "own": ("", "small", "medium", "large"),
    "distill": ("", "t2i", "i2t"),
    "eval": ("",),
    "emoji": ("", "tokenizer", "text_tokenizer", "t2i", "i2t", "students"),
    "demo": ("", "tokenizer", "text_tokenizer", "t2i", "i2t"),
}
CASES = [(f, a) for f, arguments in ARGUMENTS.items() for a in arguments]
SHARED = ("t2i", "__init__")  # files that are no configs

# section -> what takes its keys as arguments, and which of those come from elsewhere
MODULE = {"dtype", "remat", "layout", "parent", "name"}
LATENT = {"tokens", "channels", "attention"} | MODULE
OF_DIT = {"width", "depth", "heads", "mlp_ratio"} | LATENT
OF_LOSS = {"trained", "frozen", "batch", "key", "keys", "nets", "parts", "source"}
SPLATTED = {
    "clip": (ClipText, {"context"} | MODULE),
    "tokenizer": (Tokenizer, LATENT),
    "tokenizer.encoder": (
        Encoder,
        {"grid", "patch", "token_std", "kernel_std"} | LATENT,
    ),
    "tokenizer.decoder": (
        Decoder,
        {"grid", "patch", "token_std", "kernel_std"} | LATENT,
    ),
    "projector": (TextProjector, {"channels"} | MODULE),
    "align_head": (AlignHead, {"channels"} | MODULE),
    "dit": (DiT, {"mlp_ratio"} | LATENT),  # 4 at every size
    "text_decoder": (TextDecoder, {"vocab_size", "width"} | MODULE),
    "mesh": (make_mesh, {"devices"}),
    "schedule": (make_schedule, {"num_steps"}),
    "optimizer": (make_optimizer, {"schedule"}),
    "optimizer.muon": (MuonOptions, set()),
    "data.transform": (
        ImageTransform,
        {"image_size", "filters", "with_images", "most_kept"},
    ),
    "data.filters": (Filters, set()),
    "sample": (SampleOptions, set()),
    "caption": (SampleOptions, set()),
    "bench": (BenchOptions, set()),
    "loss.tokenizer.judges": (JudgeOptions, set()),
    "loss.tokenizer.gan": (GanOptions, set()),
    **{f"loss.{task}": (TASKS[task].loss, OF_LOSS) for task in TASKS},
    **{
        f"loss.{task}": ((TASKS[task].loss, t2i.draw_source), OF_LOSS)
        for task in ("t2i", "both")
    },
    "loss.t2i_distilled": (distill.Options, set()),
    "loss.i2t_distilled": (
        (distill.Options, i2t.draw_ends),
        {"frozen", "batch", "keys", "nets"},
    ),
    "lora": (LoraOptions, set()),
    "student": (AverageDiT, OF_DIT),
    "shared_dit": (SharedDiT, OF_DIT),
}


def get(file, argument):
    get_config = runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"]
    return get_config(argument) if argument else get_config()


@functools.cache
def abstract(sections, group):
    """The shapes of a group; once for all configs with the same networks."""
    return abstract_group(make_nets(default.ConfigDict(json.loads(sections))), group)


def leaves(section, prefix=""):
    for name, value in section.items():
        if isinstance(value, default.ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_file_is_known_here():
    files = {path.stem for path in CONFIGS.glob("*.py")}
    assert files == set(ARGUMENTS) | set(SHARED)


@pytest.mark.parametrize(("file", "argument"), CASES)
def test_every_config_builds_the_networks_of_its_stages(file, argument):
    config = get(file, argument)
    assert config.stages
    for stage in config.stages:
        own = for_stage(config, stage).to_dict()
        names = ("latent", "clip", "tokenizer", "projector", "align_head", "dit")
        names += ("text_decoder", "compute")
        sections = json.dumps({name: own[name] for name in names})
        nets = make_nets(for_stage(config, stage))
        for group in (stage, *TASKS[stage].frozen.values()):
            params = abstract(sections, group)
            assert set(params) == set(networks_of(group, nets))
        make_schedule(**own["schedule"], num_steps=own["train"]["num_steps"])
    ours = ("per_stage.", "init_changes.")
    keys = {key for key in leaves(config) if not key.startswith(ours)}
    assert keys == set(leaves(default.get_config()))


@pytest.mark.parametrize(
    ("file", "argument"), [case for case in CASES if case[0] in ("demo", "i2t")]
)
def test_a_stage_as_argument_leaves_that_stage(file, argument):
    every = get(file, "").stages
    assert get(file, argument).stages == ((argument,) if argument else every)


@pytest.mark.parametrize(
    ("file", "choices"),
    [
        ("h", "1, 2, 512"),
        ("s", "1, 2, 512"),
        ("tokenizer", "256, 512, 256_detok, decoder"),
        ("i2t", "text_tokenizer, i2t"),
        ("finetune", "t2i, i2t, both, lora, lora_i2t, lora_both"),
        ("both", "demo, emoji, s, b, l, xl, h"),
        ("distill", "t2i, i2t"),
        ("demo", "tokenizer, text_tokenizer, t2i, i2t"),
    ],
)
def test_a_wrong_argument_is_refused_with_the_choices(file, choices):
    with pytest.raises(UserError, match=f"'nothing'.*expected one of {choices}"):
        get(file, "nothing")


def test_arguments_make_the_difference_they_name():
    assert get("h", "1").data.train != get("h", "2").data.train
    assert [get("h", a).tokenizer.image_size for a in STAGES] == [256, 256, 256, 512]
    assert get("h", "").to_dict() == get("h", "1").to_dict()
    assert get("tokenizer", "512").tokenizer.image_size == 512
    widths = [get(size, "").dit.width for size in ("s", "b", "l", "xl", "h")]
    assert widths == sorted(set(widths))


def test_both_directions_have_the_losses_of_each_and_may_have_their_own():
    config = get("demo", "")
    assert config.loss.both.kl == config.loss.t2i.kl == "release_element_mean"
    config.update_from_flattened_dict({"loss.both.kl_weight": 2.0})
    assert (config.loss.both.kl_weight, config.loss.t2i.kl_weight) == (2.0, 0.5)
    # What sampling divides by is one number.
    config.update_from_flattened_dict({"loss.both.text_scale": 0.7})
    assert config.loss.i2t.text_scale == 0.7


@pytest.mark.parametrize("section", SPLATTED)
def test_a_section_has_exactly_the_keys_that_its_reader_takes(section):
    reader, others = SPLATTED[section]
    config = default.get_config()
    for name in section.split("."):
        config = config[name]
    readers = reader if isinstance(reader, tuple) else (reader,)
    taken = set().union(*(inspect.signature(r).parameters for r in readers))
    assert set(config) == taken - others


def test_every_other_key_is_read_somewhere():
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    unread = []
    for key in leaves(default.get_config()):
        section = key.rpartition(".")[0]
        named = rf'config\.{re.escape(key)}\b|config\["{re.escape(key)}"\]'
        if section not in SPLATTED and not re.search(named, source):
            unread.append(key)
    assert unread == []


def test_the_sections_of_a_config_are_used_whole_or_key_by_key():
    """A key more in a section that is splatted stops the build."""
    config = get("demo", "")
    for name in ("clip", "tokenizer", "projector", "align_head", "dit", "text_decoder"):
        more = config.copy_and_resolve_references()
        more[name]["more"] = 1
        with pytest.raises(TypeError, match="more"):
            make_nets(more)
