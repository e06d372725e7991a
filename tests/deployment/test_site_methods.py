"""A server names a method and never brings one: a site runs what is installed there and allowed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trifed.deployment.protocol import RefusedError
from trifed.deployment.site_policy import check_method
from trifed.deployment.site_settings import SiteSettings
from trifed.methods import METHODS, ORIGINS, code_hash
from trifed.methods.registry import Origin

OWN = {"name": "amber", "data": {"source": "t.csv"}}


@pytest.fixture
def plugged_in(monkeypatch):
    monkeypatch.setitem(METHODS, "plugged-in", replace(METHODS["fedavg-lora"], name="plugged-in"))
    monkeypatch.setitem(ORIGINS, "plugged-in", Origin("package", "elsewhere 1.0"))
    return code_hash(METHODS["plugged-in"])


def code(values, server_hash, **settings):
    with pytest.raises(RefusedError) as caught:
        check_method(values, server_hash, SiteSettings.model_validate({**OWN, **settings}))
    return caught.value.code


def test_a_method_that_comes_with_trifed_is_allowed_unless_others_are_listed():
    same = code_hash(METHODS["own-prior"])
    for values in ({}, {"method": "own-prior"}, {"method": {"name": "own-prior"}}):
        check_method(values, same, SiteSettings.model_validate(OWN))
    assert code({}, same, methods=["ce-lora"]) == "method_not_allowed"


def test_a_method_from_outside_is_allowed_only_where_it_is_listed(plugged_in):
    values = {"method": {"name": "plugged-in"}}
    assert code(values, plugged_in) == "method_not_allowed"
    check_method(values, plugged_in, SiteSettings.model_validate({**OWN, "methods": ["plugged-in"]}))


def test_a_method_that_is_not_installed_or_has_other_code_is_refused():
    assert code({"method": "no-such"}, "0" * 16) == "method_unknown"
    assert code({"method": "ce-lora"}, "0" * 16) == "method_mismatch"
    assert code({"method": "ce-lora"}, None) == "method_mismatch"
