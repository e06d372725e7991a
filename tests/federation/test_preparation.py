"""What is said while a run is prepared."""

from __future__ import annotations

import pytest

from trifed import make_config
from trifed.federation.preparation import nobody_to_share_with, prepare

ONE = {"clients": {"split": "iid", "count": 1, "column": None}}


def test_one_client_that_would_share_is_told_before_the_model_is_loaded(toy_values):
    told = []
    prepare(make_config(toy_values(method="fedavg-lora", data=ONE)), told.append)
    names = [event["event"] for event in told]
    assert names == ["loading", "split", "trouble", "loading"]
    text = told[2]["text"]
    assert text.startswith("data.clients: got one client ('client-00')")
    assert "--split column --column NAME" in text and "--method local" in text


@pytest.mark.parametrize(
    ("changes", "names", "sentences"),
    [
        ({"method": "own-prior"}, ["berlin"], 1),
        ({"method": "own-prior"}, ["berlin", "paris"], 0),
        ({"method": "own-prior", "personalization": {"share": False}}, ["berlin"], 0),
        ({"method": "local"}, ["berlin"], 0),
    ],
)
def test_only_one_client_with_a_method_that_shares_is_told(toy_values, changes, names, sentences):
    assert len(list(nobody_to_share_with(make_config(toy_values(**changes)), names))) == sentences
