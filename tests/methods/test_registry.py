"""Methods from outside the package: by Python, by a file, by an installed package."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

import trifed
from trifed.common.errors import ConfigError
from trifed.methods import METHODS, ORIGINS, code_hash, load_method_file, registry

FILE = """
from trifed.methods.base import Method, is_factor, is_head


def aggregate(options, context, state, uploads):
    return {{"mean": uploads[0].values * {factor}}}


METHOD = Method(
    name="from-file", citation="a test", adapter="lora", aggregate=aggregate,
    trains=lambda name: is_factor(name) or is_head(name), sends=is_factor,
)
"""


@pytest.fixture(autouse=True)
def as_before():
    known, origins = dict(METHODS), dict(ORIGINS)
    yield
    for now, before in ((METHODS, known), (ORIGINS, origins)):
        now.clear()
        now.update(before)


def test_a_method_registered_from_python_can_be_named():
    mine = trifed.register_method(replace(METHODS["fedavg-lora"], name="mine"))
    assert METHODS["mine"] is mine and ORIGINS["mine"].kind == "python"
    config = trifed.make_config({"data": {"source": "t.csv", "text": "a", "label": "b"}, "method": "mine"})
    assert config.method.name == "mine"


def test_a_name_is_taken_once():
    trifed.register_method(replace(METHODS["fedavg-lora"], name="mine"))
    with pytest.raises(ConfigError, match="mine"):
        trifed.register_method(replace(METHODS["fedsa-lora"], name="mine"))
    trifed.register_method(replace(METHODS["fedsa-lora"], name="mine"), replace=True)
    with pytest.raises(ConfigError, match="local"):
        trifed.register_method(replace(METHODS["fedsa-lora"], name="local"), replace=True)
    with pytest.raises(ConfigError, match="expected a"):
        trifed.register_method("local")


def test_a_method_from_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(factor=1))
    method = load_method_file(path)
    assert METHODS["from-file"] is method and str(ORIGINS["from-file"]) == "file mine.py"
    first = code_hash(method)
    path.write_text(FILE.format(factor=2))
    assert code_hash(load_method_file(path)) != first


def test_the_hash_counts_the_turns_and_their_order():
    """Two sides with other turns would read each other's messages as other tensors."""
    rolora = METHODS["rolora"]
    changed = [replace(rolora, turns=turns) for turns in (rolora.turns[::-1], rolora.turns[:1], ())]
    assert len({code_hash(method) for method in (rolora, *changed)}) == 4


@pytest.mark.parametrize(
    "text", [None, "x = 1", "METHOD = 3", "import no_such_module", "this is no Python", "METHOD = Method("]
)
def test_a_file_that_brings_no_method_is_refused(tmp_path, text):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_method_file(path)
    assert caught.value.source == "--method-file" and "mine.py" in caught.value.problems[0]


def entry(tmp_path, monkeypatch, text, value):
    (tmp_path / "plugin_of_a_test.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plugin_of_a_test", raising=False)
    registry._load_entry_point(EntryPoint("from-file", value, registry.GROUP))


@pytest.mark.parametrize("value", ["plugin_of_a_test", "plugin_of_a_test:METHOD"])
def test_a_method_of_an_installed_package(tmp_path, monkeypatch, value):
    entry(tmp_path, monkeypatch, FILE.format(factor=1), value)
    assert METHODS["from-file"].citation == "a test" and ORIGINS["from-file"].kind == "package"


def test_a_broken_package_is_told_when_its_method_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "BROKEN", {})
    entry(tmp_path, monkeypatch, "import no_such_module", "plugin_of_a_test")
    with pytest.raises(ConfigError) as caught:
        trifed.make_config({"data": {"source": "t.csv", "text": "a", "label": "b"}, "method": "from-file"})
    assert "no_such_module" in caught.value.problems[0]


def test_every_method_here_has_a_code_hash_of_its_own_and_keeps_it():
    hashes = {name: code_hash(method) for name, method in METHODS.items()}
    assert len(set(hashes.values())) == len(hashes)
    assert hashes == {name: code_hash(method) for name, method in METHODS.items()}


def test_a_function_without_a_file_is_hashed_by_its_code():
    made = {}
    for factor in (1, 2):
        namespace: dict = {}
        exec(f"def aggregate(options, context, state, uploads):\n    return {{'mean': {factor}}}", namespace)
        made[factor] = replace(METHODS["fedavg-lora"], name="cell", aggregate=namespace["aggregate"])
    assert code_hash(made[1]) != code_hash(made[2])


def test_a_comparison_takes_methods_from_files_and_not_from_this_process_alone(tmp_path):
    run = {"data": {"source": "t.csv", "text": "a", "label": "b"}}
    trifed.register_method(replace(METHODS["fedavg-lora"], name="mine"))
    with pytest.raises(ConfigError) as caught:
        trifed.make_comparison({"methods": ["local", "mine"], "run": run})
    assert len(caught.value.problems) == 1 and "--method-file" in caught.value.problems[0]
    (tmp_path / "mine.py").write_text(FILE.format(factor=1))
    load_method_file(tmp_path / "mine.py")
    assert trifed.make_comparison({"methods": ["local", "from-file"], "run": run}).methods == [
        "local",
        "from-file",
    ]
