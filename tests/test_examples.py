"""The examples run, on the tiny model and the small table, and do what their pages say."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from in_this_process import in_this_process
from test_cli_help import call
from trifed import load_client, make_comparison, make_config
from trifed.deployment.release_log import read_releases
from trifed.experiments.dry_run import dry_run
from trifed.methods import METHODS, ORIGINS

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples"

# PEFT 0.21 reads a property by the name that it had before transformers 5.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def example(monkeypatch, tmp_path):
    """`example("hospitals")`: the names that the script defines; it then runs inside an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    return lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture
def notebook(monkeypatch, tmp_path):
    """`notebook("first_steps", ROUNDS=1)`: the names after all cells ran in an empty folder.

    The cell with the tag "parameters" is the one whose names are replaced, as papermill does it. The cells run in
    this process, without a kernel, which would import torch once more.
    """
    monkeypatch.chdir(tmp_path)

    def execute(name, **parameters):
        cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        names = {"__name__": "__main__"}
        for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
            exec(compile("".join(cell["source"]), f"{name}.ipynb, code cell {number}", "exec"), names)
            if "parameters" in cell["metadata"].get("tags", []):
                assert names.keys() >= parameters.keys()
                names |= parameters
        return names

    return execute


def test_three_hospitals(example, tiny_reader, capsys):
    script = example("hospitals")
    departments = script["main"](model=tiny_reader, rounds=1)
    assert len(departments) == 2 and set(departments) <= set(script["CASES"])
    printed = capsys.readouterr().out
    assert all(f"{site}: accuracy" in printed for site in ("north", "harbour", "valley"))


def test_an_aggregation_of_ones_own_is_compared_with_equal_parts(example, toy_table, tiny_encoder, monkeypatch):
    monkeypatch.setenv("TRIFED_METHOD_FILES", "")  # put back at the end
    script = example("compare_aggregation")
    try:
        with in_this_process():
            result = script["main"](str(toy_table), str(tiny_encoder), rounds=1)
        values = make_comparison(script["settings"](str(toy_table), str(tiny_encoder), 1, [0]))
        fair, preset = (make_config(values.run_values("all", name)) for name in ("fedavg-lora", "own-prior"))
    finally:
        METHODS.pop("capped-lora")
        ORIGINS.pop("capped-lora")
    assert (fair.personalization, fair.aggregation) == (preset.personalization, preset.aggregation)
    default = make_config({"data": {"source": str(toy_table)}, "method": "own-prior"})
    assert (preset.personalization, preset.aggregation, preset.wire) == (
        default.personalization, default.aggregation, default.wire
    )  # fmt: skip
    table = result.table()
    assert {"fedavg-lora", "own-prior", "capped-lora"} <= set(table.index.get_level_values("method"))


def test_two_sites_are_served_from_one_base(example):
    script = example("instruction_tuning")
    answers = script["main"](rounds=1)
    assert answers.keys() == {"clinic", "school"}
    for site, answer in answers.items():  # the same as that site's adapter by itself
        tokenizer = AutoTokenizer.from_pretrained("tiny-llama")
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained("tiny-llama", dtype=torch.float32), f"adapters/{site}"
        )
        ids = tokenizer("Q: opens?\nA: ", return_tensors="pt")["input_ids"]
        written = model.eval().generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=1)
        assert tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True) == answer


def test_folders_of_images(example):
    script = example("image_folders")
    labels = script["main"](rounds=1)
    assert len(labels) == 3 and set(labels) <= set(script["COLORS"])


def test_a_server_and_three_sites_on_one_machine(example, tiny_reader, tmp_path):
    pytest.importorskip("flwr")
    script = example("between_sites")
    try:
        predicted = script["main"](model=tiny_reader, rounds=1)
    finally:
        subprocess.run(["pkill", "-9", "-f", str(tmp_path)], check=False)
    assert predicted.keys() == {"hotel", "clinic", "transit"} and all(
        len(labels) == 2 for labels in predicted.values()
    )
    for site in predicted:
        assert [r.kind for r in read_releases(tmp_path / "between-sites" / site / "kept") if r.kind == "train"]
    ports = {re.search(r"--port (\d+)", (tmp_path / "between-sites" / site / "start.sh").read_text())[1]
             for site in predicted}  # fmt: skip
    assert len(ports) == 3
    ended = json.loads((tmp_path / "between-sites/server/runs/tickets/summary.json").read_text(encoding="utf-8"))
    assert ended["sealing"] == {"at_least": 3, "fewest": 3, "rounds_without": 0}


def test_first_steps(notebook, tiny_reader):
    names = notebook("first_steps", MODEL=tiny_reader, ROUNDS=1)
    assert set(names["result"].clients.index) == {"hotel", "clinic", "transit"}
    assert names["page"].is_file() and (names["adapter"] / "adapter_model.safetensors").is_file()


def test_results_are_read_and_methods_compared(notebook, tiny_reader):
    with in_this_process():
        names = notebook("compare_methods", MODEL=tiny_reader, ROUNDS=1, SEEDS=[0])
    assert {"local", "fedavg-lora", "own-prior"} <= set(names["table"].index.get_level_values("method"))
    assert names["upload"]["round"] == 1 and set(names["one"].clients.index) == {"hotel", "clinic", "transit"}


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


def test_the_settings_find_their_data_in_a_copy_of_the_folder(tiny_reader, tmp_path, monkeypatch, capsys):
    for name in ("tickets.csv", "tickets.toml", "rivals.toml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    said = call(capsys, monkeypatch, "run", "tickets.toml", "--dry-run", "--model", tiny_reader)
    assert said.code == 0, said.err
    rivals = make_comparison(tomllib.loads(Path("rivals.toml").read_text(encoding="utf-8")))
    for partition in rivals.partitions:
        values = rivals.run_values(partition, "own-prior")
        values["model"] = {"name": tiny_reader}
        assert dry_run(make_config(values), lambda event: None)


def test_every_example_is_in_the_list():
    listed = set(re.findall(r"\]\((\w+\.\w+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert listed == {
        path.name for path in EXAMPLES.iterdir() if path.suffix in (".csv", ".py", ".toml", ".ipynb")
    }
