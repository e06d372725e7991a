"""Names of earlier versions: they still work, and say what they are called today."""

from __future__ import annotations

import importlib
import sys
import warnings

import pytest

import trifed
from trifed.common.deprecated_names import DOCUMENTED, MOVED, RENAMED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_moved_module_is_the_same_module(old):
    if old.endswith("to_mlflow"):
        pytest.importorskip("mlflow", reason="the mlflow extra is not installed")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__spec__.name == MOVED[old]


def test_the_old_name_of_a_module_warns():
    sys.modules.pop("trifed.nested", None)
    with pytest.warns(DeprecationWarning, match=r"trifed\.common\.dict_merge"):
        importlib.import_module("trifed.nested")


@pytest.mark.parametrize("old", sorted(DOCUMENTED))
def test_a_documented_module_keeps_its_name_without_a_warning(old):
    assert importlib.import_module(old) is importlib.import_module(DOCUMENTED[old])


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in RENAMED.items() for n in names])
def test_a_renamed_attribute_is_the_same_object(module, name):
    home, _, today = RENAMED[module][name].rpartition(".")
    with pytest.warns(DeprecationWarning, match=RENAMED[module][name]):
        found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(home), today)


def test_an_attribute_that_never_was_is_none():
    with pytest.raises(AttributeError):
        _ = importlib.import_module("trifed.config").no_such_name
    with pytest.raises(AttributeError):
        _ = trifed.no_such_name
