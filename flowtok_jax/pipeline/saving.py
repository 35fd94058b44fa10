"""Trained weights handed on: to a directory, or to the Hugging Face hub."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from flowtok_jax.array_types import Params
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.models.build import Nets
from flowtok_jax.models.quantized import check_exact
from flowtok_jax.runtime.files import Place, to_place
from flowtok_jax.sampling import SampleOptions
from flowtok_jax.weights import pretrained
from flowtok_jax.weights.card import Facts, write_card
from flowtok_jax.weights.derived import find_derived
from flowtok_jax.weights.groups import find_adapters
from flowtok_jax.weights.place import Weights
from flowtok_jax.weights.publish import publish


class Saving:
    """The part of `FlowTok` that stores its weights."""

    # Of FlowTok, which this is a part of.
    nets: Nets
    params: Params
    vocabulary: Vocabulary
    sample: SampleOptions
    caption: SampleOptions
    text_scale: float
    losses: Mapping[str, Any]
    sources: Sequence[Weights]

    def save_pretrained(
        self,
        directory: str | Place,
        *,
        dtype: str = "float32",
        whole: bool = False,
    ) -> None:
        """Writes a directory for `from_pretrained`, whole or not at all.

        Args:
            dtype: of the files; "float16" halves them, and rounds each parameter by at
                most 2**-11 of its value. `from_pretrained` makes float32 of both.
            whole: stores a distilled flow that was trained by adapters as what they and
                its teacher make, and not as the adapters.

        Raises:
            UserError: where the directory has something in it already, or float16
                cannot hold a parameter.
        """
        check_exact(self.params)
        config = pretrained.make_stored_config(
            self.nets,
            sample=self.sample._asdict(),
            caption=self.caption._asdict(),
            text_scale=self.text_scale,
            losses=self.losses,
        )
        groups = {name: functools.partial(dict, p) for name, p in self.params.items()}
        if not whole:
            groups |= find_derived(find_adapters(self.sources), self.params)
        pretrained.save(to_place(directory), config, groups, self.vocabulary, dtype)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        dtype: str = "float32",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        commit_message: str = "",
        **facts,
    ) -> str:
        """Publishes the weights with a model card on the Hugging Face hub.

        The arguments are those of huggingface_hub's mixin for models.

        Args:
            repo_id: OWNER/NAME, made where it does not exist.
            dtype: as of `save_pretrained`.
            facts: fields of `weights.card.Facts`: license, base_model, datasets,
                metrics, about.

        Returns:
            The commit's URL.

        Raises:
            UserError: where the hub refuses, or cannot be reached.
        """
        card = write_card(repo_id, self.nets, self.params, Facts(**facts))
        save = functools.partial(self.save_pretrained, dtype=dtype)
        how = {"private": private, "token": token, "branch": branch}
        how |= {"create_pr": create_pr, "commit_message": commit_message}
        return publish(save, card, repo_id, **how)
