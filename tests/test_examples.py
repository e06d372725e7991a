"""The examples run, on the tiny model and the small table, and do what their pages say."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import numpy as np
import pytest

from trifed import load_client, make_comparison, make_config

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples"

# PEFT 0.21 reads a property by the name that it had before transformers 5.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def example(monkeypatch, tmp_path):
    """`example("train_and_predict")`: the names that the script defines; it then runs inside an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_train_and_predict(example, toy_table, tiny_encoder):
    labels = example("train_and_predict")["main"](str(toy_table), str(tiny_encoder), rounds=1)
    assert len(labels) == 2 and set(labels) <= {"billing", "delivery", "login"}


def test_methods_with_equal_parts_send_as_few_bytes(example, toy_table, tiny_encoder):
    script = example("compare_with_equal_parts")
    configs = {
        name: make_config({"data": {"source": str(toy_table)}, "method": name, **settings})
        for name, settings in script["METHODS"].items()
    }
    preset, equal = configs["own-prior"], configs["fedavg-lora-equal-parts"]
    assert preset.personalization == equal.personalization
    assert preset.aggregation == equal.aggregation and preset.wire == equal.wire
    accuracy = script["main"](str(toy_table), str(tiny_encoder), rounds=1)
    assert accuracy.keys() == configs.keys()


def test_an_export_computes_the_same_with_plain_peft(example, toy_table, tiny_encoder):
    script = example("export_to_peft")
    folder = script["main"](str(toy_table), str(tiny_encoder), rounds=1)
    texts = ["parcel courier word001", "password reset"]
    plain = np.array([list(row.values()) for row in script["classify"](folder, texts)])
    np.testing.assert_allclose(plain, load_client(folder).probabilities(texts), atol=1e-6)


def test_a_tri_matrix_adapter_is_a_peft_method(example, tiny_encoder):
    assert example("tri_matrix_with_peft")["main"](str(tiny_encoder), "adapter", steps=2) < 1e-5


def test_the_method_of_the_page_is_the_example():
    page = (REPOSITORY / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    assert code == (EXAMPLES / "capped_lora.py").read_text(encoding="utf-8")


def test_the_settings_can_be_used():
    run = make_config(tomllib.loads((EXAMPLES / "tickets.toml").read_text(encoding="utf-8")))
    assert run.method.name == "own-prior" and run.wire.bits == 1
    rivals = make_comparison(tomllib.loads((EXAMPLES / "rivals.toml").read_text(encoding="utf-8")))
    fair = make_config(rivals.run_values("by-site", "fedavg-lora"))
    own = make_config(rivals.run_values("by-site", "own-prior"))
    assert (fair.personalization, fair.aggregation, fair.wire) == (own.personalization, own.aggregation, own.wire)


def test_every_example_is_in_the_list():
    listed = set(re.findall(r"\]\((\w+\.\w+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".toml")}
