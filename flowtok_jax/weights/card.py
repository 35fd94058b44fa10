"""Model card of trained weights: README.md of a repository of the hub.

The head between two lines of dashes is YAML that the hub reads
(https://huggingface.co/docs/hub/model-cards), the rest is for people.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from flowtok_jax.array_types import Params
from flowtok_jax.models.build import Nets, has_group

LIBRARY = "flowtok_jax"
PAPER = "https://arxiv.org/abs/2503.10772"
# What the hub sorts models by, with the groups that can do it.
TASKS_OF_GROUPS = {
    "text-to-image": ("t2i", "t2i_distilled"),
    "image-to-text": ("i2t", "i2t_distilled"),
}


class Facts(NamedTuple):
    """Facts that the weights themselves do not tell.

    Attributes:
        license: by the hub's names, as "apache-2.0" or "cc-by-sa-4.0"; "" leaves it
            open, and the card says so.
        base_model: hub id of the weights that training started from.
        datasets: hub ids or names of what was trained on.
        metrics: numbers by name, as --mode=eval prints them.
        about: a paragraph on data, training and limits.
    """

    license: str = ""
    base_model: str = ""
    datasets: Sequence[str] = ()
    metrics: Mapping[str, float] = {}
    about: str = ""


def find_tasks(params: Params) -> list[str]:
    """Returns what weights can do, by the hub's names."""
    tasks = TASKS_OF_GROUPS.items()
    return [task for task, groups in tasks if any(has_group(g, params) for g in groups)]


def write_card(repo_id: str, nets: Nets, params: Params, facts: Facts) -> str:
    """Writes the card of weights that `repo_id` holds."""
    import huggingface_hub  # slow to import, and needed only here

    tasks = find_tasks(params)
    head = huggingface_hub.ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=tasks[0] if tasks else None,
        tags=["flowtok", "jax", "flax", "flow-matching", *tasks],
        license=facts.license or None,
        base_model=facts.base_model or None,
        datasets=list(facts.datasets) or None,
    )
    parts = [f"---\n{head.to_yaml()}\n---\n", f"# {repo_id.rpartition('/')[2]}\n"]
    parts += [facts.about.strip() + "\n"] if facts.about else []
    parts += [_usage(repo_id, nets, tasks), _sizes(nets, params)]
    if facts.metrics:
        rows = (f"| {name} | {value:.4g} |" for name, value in facts.metrics.items())
        parts.append("## Numbers\n\n| measure | value |\n|---|---|\n" + _lines(rows))
    said = facts.license or "not stated by who published these weights"
    parts.append(f"## Licence\n\n{said}\n")
    parts.append(f"Method: FlowTok, <{PAPER}>. Code: `pip install {LIBRARY}`.\n")
    return "\n".join(parts)


def _lines(rows) -> str:
    return "".join(f"{row}\n" for row in rows)


def _usage(repo_id: str, nets: Nets, tasks: Sequence[str]) -> str:
    """Shows how to use the weights from Python."""
    size = nets.tokenizer.image_size
    calls = {
        "text-to-image": 'flowtok.draw(["a caption"])[0].save("drawn.png")',
        "image-to-text": 'print(flowtok.image_to_text(["picture.png"]))',
    }
    code = [
        "from flowtok_jax import FlowTok",
        "",
        f'flowtok = FlowTok.from_pretrained("{repo_id}")',
        *(calls[task] for task in tasks),
    ]
    return f"Images are {size} x {size} pixels.\n\n```python\n{_lines(code)}```\n"


def _sizes(nets: Nets, params: Params) -> str:
    """Lists the groups of networks with their numbers of parameters."""
    counts = {
        group: sum(leaf.size for leaf in jax.tree.leaves(leaves))
        for group, leaves in sorted(params.items())
    }
    rows = (f"| {group} | {count / 1e6:.1f} |" for group, count in counts.items())
    told = f"{nets.dit.tokens} tokens of {nets.dit.channels} channels"
    table = "| group | million parameters |\n|---|---|\n" + _lines(rows)
    return f"## Networks\n\nAn image or a caption is {told}.\n\n{table}"
