"""Weights to a hub and back, by a hub on this machine."""

import pytest
import yaml

from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights import publish
from tests.weights.fake_hub import FakeHub
from tests.weights.pretrained_test import equal

REPO = "somebody/flowtok-tiny"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = FakeHub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    yield hub
    hub.close()


def head_of(card: bytes) -> dict:
    return yaml.safe_load(card.decode().split("---\n")[1])


def test_what_is_published_is_read_again(flowtok, hub):
    url = flowtok.push_to_hub(REPO, license="apache-2.0", private=True)
    assert url.startswith(hub.endpoint)
    assert "private" in (hub.created[0].get("visibility"), *hub.created[0])  # 2.x, 1.x
    equal(FlowTok.from_pretrained(REPO).params, flowtok.params)


def test_the_card_says_what_the_weights_are(flowtok, hub):
    flowtok.push_to_hub(
        REPO,
        license="cc-by-sa-4.0",
        base_model="somebody/base",
        datasets=["somebody/pictures"],
        metrics={"psnr_db_n400": 31.912},
        about="Drawings of 鴨 🦆.",
    )
    card = hub.files[REPO]["README.md"]
    head = head_of(card)
    assert head["library_name"] == "flowtok_jax"
    assert head["pipeline_tag"] == "text-to-image"
    assert head["license"] == "cc-by-sa-4.0"
    assert head["base_model"] == "somebody/base"
    assert head["datasets"] == ["somebody/pictures"]
    assert {"flowtok", "jax", "image-to-text"} <= set(head["tags"])
    text = card.decode()
    for said in (f'from_pretrained("{REPO}")', "31.91", "🦆", "2503.10772", "| t2i |"):
        assert said in text


def test_weights_of_one_direction_are_tagged_so(flowtok, hub):
    groups = ("clip", "tokenizer", "text_tokenizer", "i2t")
    params = {group: flowtok.params[group] for group in groups}
    FlowTok(flowtok.nets, params, flowtok.vocabulary).push_to_hub(REPO)
    head = head_of(hub.files[REPO]["README.md"])
    assert head["pipeline_tag"] == "image-to-text"
    assert "license" not in head
    assert "not stated" in hub.files[REPO]["README.md"].decode()


def test_published_again_no_group_of_the_last_weights_stays(flowtok, hub):
    flowtok.push_to_hub(REPO)
    hub.files[REPO]["samples/one.png"] = b"a picture"
    params = {group: p for group, p in flowtok.params.items() if group != "i2t"}
    fewer = FlowTok(flowtok.nets, params, flowtok.vocabulary)
    fewer.push_to_hub(REPO, commit_message="without captions")
    assert hub.messages[-1] == "without captions"
    assert "i2t.safetensors" not in hub.files[REPO]
    assert "samples/one.png" in hub.files[REPO]


@pytest.mark.parametrize("name", ["", "name", "a/b/c", "bad name/x", "a/..b"])
def test_a_name_that_the_hub_has_not_is_refused_before_anything_is_sent(
    flowtok, hub, name
):
    with pytest.raises(UserError, match="repo_id is "):
        flowtok.push_to_hub(name)
    assert not hub.created


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_not_write_is_told_how_to(flowtok, hub, status):
    hub.status = status
    with pytest.raises(UserError, match=f"status {status}.*hf auth login"):
        flowtok.push_to_hub(REPO)


def test_a_hub_that_fails_is_said(flowtok, hub):
    hub.status = 400
    with pytest.raises(UserError, match=f"the hub refused {REPO}"):
        flowtok.push_to_hub(REPO)


def test_no_network_is_one_line(flowtok, hub):
    hub.close()
    with pytest.raises(UserError, match="could not be reached .*nothing was published"):
        flowtok.push_to_hub(REPO)


def test_weights_that_cannot_be_saved_never_reach_the_hub(hub):
    def save(folder):
        raise UserError("nothing to save")

    with pytest.raises(UserError, match="nothing to save"):
        publish.publish(save, "", REPO)
    assert not hub.created
