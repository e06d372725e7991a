"""The states of a run that a site keeps on its disk."""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors.torch import save_file

from trifed.deployment.site_store import SiteStore
from trifed.federation.client_update import ClientState
from trifed.federation.sealed.upload import OWN
from trifed.federation.state_tensors import state_tensors
from trifed.federation.upload import RESIDUAL


def state(number):
    return ClientState({"w": torch.full((2,), float(number))}, {}, number)


def test_which_states_a_site_keeps(tmp_path):
    store = SiteStore.at(tmp_path / "run", {})

    def done(number, counts, keep=3):
        store.save_round(number, counts, state(number), {}, keep)
        found = {n: store.state_after(n, {}) for n in store.rounds()}
        assert {n: float(s.tensors["w"][0]) for n, s in found.items()} == {n: float(n) for n in found}
        assert (store.last_round(), store.counted_round()) == (number, counts)
        return store.rounds()

    assert [done(number, number - 1) for number in (1, 2, 3, 4, 5)][-1] == [2, 3, 4, 5]
    assert done(6, 4) == [2, 3, 4, 6]  # the upload of round 5 did not arrive
    assert done(8, 6) == [3, 4, 6, 8]  # absent in round 7
    assert store.goes_back(8, 4) and store.goes_back(7, 6) and not store.goes_back(8, 6)
    assert done(5, 4) == [3, 4, 5]
    assert done(6, 5) == [3, 4, 5, 6]
    assert done(7, 6, keep=1) == [6, 7]
    assert sorted(p.name for p in store.folder.glob("*.safetensors")) == [
        "state-before.safetensors", "state.safetensors",
    ]  # fmt: skip
    assert done(1, 0) == [1]
    store.reset()
    assert store.rounds() == []


def test_a_state_of_another_beginning_is_lost(tmp_path):
    store = SiteStore.at(tmp_path / "run", {})
    for number in (1, 2, 3):
        store.save_round(number, number - 1, state(number), {}, 3)
    has, beginning = store.rebase()
    assert (has, store.rounds(), store.counted_round()) == (3, [3], 3) and beginning
    store.save_round(4, 3, state(4), {}, 3)
    for number in (3, 4):
        assert store.state_after(number, {}, beginning) and store.state_after(number, {})
        assert store.state_after(number, {}, "") is None
    assert SiteStore.at(tmp_path / "other", {}).rebase() == (0, "")


def test_under_a_seal_a_client_keeps_its_own_rows_at_a_new_beginning(tmp_path):
    store, memory = (
        SiteStore.at(tmp_path / "run", {}),
        {OWN: np.ones(2, np.float32), RESIDUAL: np.ones(2, np.float32)},
    )
    store.save_round(1, 0, ClientState({"w": torch.ones(2)}, {}, 1, memory), {})
    store.rebase()
    assert list(store.state_after(1, {}).memory) == [OWN]


def test_a_folder_of_an_earlier_version_is_continued(tmp_path):
    store = SiteStore.at(tmp_path / "run", {})
    for number, name in ((1, "state-before"), (2, "state")):
        facts = {"trifed": json.dumps({"round": number, "steps": number})}
        save_file(state_tensors(state(number)), store.folder / f"{name}.safetensors", facts)
    assert (store.rounds(), store.last_round(), store.counted_round()) == ([1, 2], 2, 1)
    assert store.state_after(1, {}, "") and store.state_after(2, {}, "")
    store.save_round(3, 2, state(3), {}, 3)
    assert store.rounds() == [1, 2, 3]
