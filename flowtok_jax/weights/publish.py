"""Weights to the Hugging Face hub, from where `from_pretrained` reads them."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from flowtok_jax.runtime.errors import UserError, reason_of
from flowtok_jax.runtime.files import Place

CARD = "README.md"


def publish(
    save: Callable[[Place], None],
    card: str,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    commit_message: str = "",
) -> str:
    """Uploads a pretrained directory with its card, in one commit.

    Files of the repository that the directory lacks stay, but for groups of weights.

    Args:
        save: writes the directory.
        repo_id: OWNER/NAME; made where it does not exist.
        private: of a repository that is made; None: as the owner's default is.
        token: of the hub; None: that of `hf auth login` or HF_TOKEN.
        branch: that the commit goes to; None: main.
        create_pr: opens a pull request in place of a commit.

    Returns:
        The commit's URL.

    Raises:
        UserError: where the hub refuses or cannot be reached.
    """
    if "/" not in repo_id:
        raise UserError(f"repo_id is {repo_id!r}; expected OWNER/NAME of the hub")
    with tempfile.TemporaryDirectory() as parent:
        folder = pathlib.Path(parent) / "weights"
        # All that can be wrong with the weights comes before the hub hears of them.
        save(folder)
        (folder / CARD).write_text(card, encoding="utf-8")
        with _said(repo_id, token) as api:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if branch is not None:
                api.create_branch(repo_id, branch=branch, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or "Upload weights with flowtok_jax",
                revision=branch,
                create_pr=create_pr,
                # A group that these weights lack would be read with their config.
                delete_patterns=["*.safetensors"],
            )
    return str(commit.pr_url if create_pr else commit.commit_url)


@contextlib.contextmanager
def _said(repo_id: str, token: str | None) -> Iterator[Any]:
    """Yields the hub's API, and turns what it raises into a UserError."""
    import huggingface_hub  # slow to import, and needed only here
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # httpx's or httpx2's, as the version of huggingface_hub has it.
    no_answer = HfHubHTTPError.__mro__[1], OSError
    try:
        yield huggingface_hub.HfApi(token=token, library_name="flowtok_jax")
    except HFValidationError as error:
        raise UserError(f"repo_id is {repo_id!r}: {error}") from error
    except HfHubHTTPError as error:  # an OSError too
        raise UserError(_refused(repo_id, error)) from error
    except no_answer as error:
        raise UserError(
            f"the hub could not be reached ({reason_of(error)}); nothing was published"
        ) from error


def _refused(repo_id: str, error: Exception) -> str:
    """Says why the hub took nothing, and what to do."""
    # Some errors of the library carry no answer.
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"the hub refused to write {repo_id} (status {status}); expected a token "
            "that may: `hf auth login`, HF_TOKEN or token="
        )
    return f"the hub refused {repo_id} ({reason_of(error)})"
