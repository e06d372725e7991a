"""Between sites: what may leave a client is the client's to say, and so is which base model it trains."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trifed.common.errors import ConfigError
from trifed.deployment.greeting import settings_to_send
from trifed.deployment.site_settings import SiteSettings, site_settings
from trifed.deployment.site_store import BASES
from trifed.federation.server import Server

SITES = ["amber", "basil", "coral"]


@pytest.fixture
def sites(federation, site_tables):
    """`sites(privacy={...})`: three clients and dill, which says one word more or less often; its settings."""
    rows = "".join("parcel " * times + ",delivery,dill\n" for times in range(1, 20))
    (site_tables / "dill.csv").write_text(f"text,label,site\n{rows}", encoding="utf-8")

    def make(method="ce-lora", **settings):
        nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
        nodes[3] = federation.node("dill", **settings)
        changes = {"deployment": {"clients": 4}, "privacy": {"few_tokens": "allow", "small_components": "allow"}}
        return federation(method, nodes=nodes, data={"allow_single_class": True}, **changes)

    return make


def test_who_would_send_too_little_is_left_out_whatever_the_server_allows(sites, events):
    coordinator, _ = sites()
    assert "privacy" not in json.loads(settings_to_send(coordinator.config))
    coordinator.run()
    out = events(coordinator, "left out")
    assert [(e["client"], e["round"]) for e in out] == [("dill", 1), ("dill", 2)]
    assert {e["code"] for e in out} == {"guard"}
    assert {e["client"] for e in events(coordinator, "trained")} == set(SITES)


def test_a_server_that_sends_its_own_word_is_not_heard(sites, events):
    coordinator, channel = sites()
    told = json.loads(coordinator.client_manager.hello.facts["config"])
    coordinator.client_manager.hello.facts["config"] = json.dumps({**told, "privacy": {"few_tokens": "allow"}})
    coordinator.run()
    assert channel.clients[3].run.config.privacy.few_tokens == "refuse"
    assert {e["client"] for e in events(coordinator, "left out")} == {"dill"}


@pytest.mark.parametrize("policy", ["warn", "allow"])
def test_a_client_may_send_it_all_the_same_and_hears_it_alone(policy, sites, events, caplog):
    coordinator, _ = sites(privacy={"few_tokens": policy})
    coordinator.run()
    assert events(coordinator, "left out") == [] and events(coordinator, "warned") == []
    assert {e["client"] for e in events(coordinator, "trained")} == {*SITES, "dill"}
    said = [record.getMessage() for record in caplog.records if "few_tokens" in record.getMessage()]
    assert len(said) == (1 if policy == "warn" else 0)
    assert all("dill, 3 different tokens" in text for text in said)


# -- the base model


@pytest.fixture
def own_base(tiny_encoder, tmp_path):
    """A copy of the base that may be changed: `own_base()` changes one weight of it."""
    folder = shutil.copytree(tiny_encoder, tmp_path / "own-base")

    def change():
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in weights if "word_embeddings" in name)
        with torch.no_grad():
            weights[name][5] += 1
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    change.folder = folder
    return change


def test_a_base_that_changed_is_refused_from_then_on(federation, own_base, site_tables, events):
    """By the client itself, before it sends anything: the run is another one, so the server cannot know."""
    nodes = {place: federation.node(site, model=str(own_base.folder)) for place, site in enumerate(SITES)}
    first, _ = federation(nodes=nodes, folder="first")
    first.run()
    kept = json.loads((site_tables / "nodes" / "amber" / BASES).read_text(encoding="utf-8"))
    assert list(kept.values()) == [first.checkpoint.facts["base"]]
    own_base()
    nodes = {place: federation.node(site) for place, site in enumerate(SITES[1:])}
    nodes[2] = federation.node("amber", model=str(own_base.folder))
    second, _ = federation(nodes=nodes, folder="second", deployment={"clients": 2})
    second.run()
    [refused] = events(second, "refused")
    assert refused["code"] == "base_mismatch"
    assert str(own_base.folder) not in refused["reason"]  # where it lies is nobody's business
    (site_tables / "nodes" / "amber" / BASES).unlink()  # the change is meant
    assert not nodes[2].answer(second.client_manager.hello).error


def test_a_base_that_changes_under_a_run_is_refused_before_anything_is_sent(federation, own_base, events):
    def node(site):
        return federation.node(site, model=str(own_base.folder))

    nodes = {place: node(site) for place, site in enumerate(SITES)}
    coordinator, channel = federation(nodes=nodes, rounds=3)

    def restarts(reply, request):
        own_base()
        channel.clients[1] = node("basil")
        return reply

    channel.faults[("train", 1, "basil")] = restarts
    coordinator.run()
    out = events(coordinator, "left out")
    assert [(e["client"], e["round"]) for e in out] == [("basil", 2), ("basil", 3), ("basil", 4)]
    assert {e["code"] for e in out} == {"base_mismatch"}


def test_a_client_may_insist_on_one_base(federation, events):
    coordinator, _ = federation(folder="whole")
    coordinator.run()
    base = coordinator.checkpoint.facts["base"]
    nodes = {place: federation.node(site, base=base[:16]) for place, site in enumerate(SITES)}
    nodes[3] = federation.node("amber", name="dill", base="0" * 16)
    again, _ = federation(nodes=nodes)
    again.run()
    assert [e["code"] for e in events(again, "refused")] == ["base_mismatch"]
    with pytest.raises(ConfigError, match=r"base: got 'abc', expected"):
        site_settings({"name": "dill", "data": {}, "base": "abc"}, "node.toml")


def test_guards_are_on_unless_a_client_says_otherwise():
    told = SiteSettings(name="dill", data={}).privacy
    assert (told.few_tokens, told.small_components) == ("refuse", "refuse")


# -- what a site accepts


def test_a_site_does_not_end_with_a_model_that_is_worse_for_its_own_data(federation, monkeypatch):
    """The server's last message is noise: a site with `worse_by` keeps what it has trained."""
    download = Server.download

    def noise_at_the_end(server, number, client):
        if number <= 2:
            return download(server, number, client)
        noise = 3 * np.random.default_rng(0).standard_normal(server.start.shape).astype(np.float32)
        header = server.context.header("download", number, client)
        return server.context.compression.encode(header, noise, server.start)

    monkeypatch.setattr(Server, "download", noise_at_the_end)
    nodes = {
        place: federation.node(site, worse_by=worse_by)
        for place, (site, worse_by) in enumerate(zip(SITES, (0.1, 1e6, None), strict=True))
    }
    federation("fedavg-lora", nodes=nodes)[0].run()
    largest = {}
    for node in nodes.values():
        [path] = node.settings.folder.glob("*/model/adapter_model.safetensors")
        largest[node.settings.name] = max(float(t.abs().max()) for n, t in load_file(path).items() if "lora" in n)
    assert largest["amber"] < 1 < min(largest["basil"], largest["coral"])
