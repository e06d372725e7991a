"""Does vLLM read the adapters that trifed exports, and compute the same with several of them in one batch?

    pip download --no-deps vllm
    python benchmarks/serving/vllm_reads.py --wheel vllm-*.whl --base DIR [--rank 8] [--out vllm.json]

vLLM itself needs a GPU, or its own build for processors, which is not on PyPI. This script takes the files of the
wheel that read and check an adapter (`vllm/lora/peft_helper.py`, `lora_model.py`, `lora_weights.py`, `utils.py`)
and vLLM's plain torch operators for a batch with several adapters (`ops/torch_ops`), and runs them:

1. trifed trains a causal language model at three sites for two rounds, and exports every client as `lora`;
2. vLLM's reader loads each adapter, with its checks of features, rank and modules;
3. for each adapted layer, vLLM's operators add the adapters of a batch whose rows belong to different sites; the
   result is compared with PEFT's own layers, row by row.

DIR holds a Llama, as a folder for transformers; `benchmarks/models/llama2c.py` makes one of stories260K.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import tempfile
import types
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

Json = dict[str, Any]
TAKEN = ("peft_helper", "lora_model", "lora_weights", "utils", "ops.torch_ops.lora_ops")
"""Modules of `vllm.lora` that run as they are; every other module of vLLM is an empty stand-in."""
LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""Layers of a Llama that vLLM can adapt (`packed_modules_mapping` of its Llama, unpacked)."""
SITES = ("north", "south", "west")
RANK_LIMIT = 16
"""Default of vLLM's --max-lora-rank."""


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stand-in for each module of vLLM that is not taken from the wheel."""

    def __init__(self, folder: Path) -> None:
        self.taken = {f"vllm.lora.{name}": folder / "vllm/lora" / f"{name.replace('.', '/')}.py" for name in TAKEN}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name in self.taken:
            return importlib.util.spec_from_file_location(name, self.taken[name])
        if name.split(".")[0] == "vllm":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to do."""


class Empty(types.ModuleType):
    """A package whose names are all stand-ins; `PIN_MEMORY` is False, as without a GPU."""

    PIN_MEMORY = False
    __path__: list[str] = []  # noqa: RUF012 - a module's own attribute

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


def train(base: Path, rank: int, folder: Path) -> Path:
    """Train at three sites, export, and return the folder with an adapter for each."""
    from trifed import export_clients, make_config, run

    rows = [
        {"text": f"{word} {verb} the {thing}", "site": site}
        for site, thing in zip(SITES, ("boat", "tree", "road"), strict=True)
        for word in ("He", "She", "Tim", "Lily")
        for verb in ("saw", "liked", "found", "drew", "lost")
    ]
    table = folder / "stories.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config({
        "name": "served", "task": "causal-lm", "rounds": 2, "method": "ce-lora", "baselines": [],
        "model": {"name": str(base), "max_length": 32},
        "adapter": {"rank": rank, "target_modules": sorted(LAYERS)},
        "data": {"source": str(table), "text": "text", "clients": {"split": "column", "column": "site"}},
        "training": {"learning_rate": 1e-2, "device": "cpu", "precision": "fp32", "batch_size": 4},
    })  # fmt: skip
    result = run(config, folder / "run")
    return export_clients(result.path, "lora", folder / "adapters")


def vllms_reader(folder: Path) -> tuple[Any, Any, Any]:
    """Return vLLM's PEFTHelper, LoRAModel and torch operators from an unpacked wheel."""
    sys.meta_path.insert(0, StandIns(folder))
    names = ("peft_helper", "lora_model", "ops.torch_ops.lora_ops")
    return tuple(importlib.import_module(f"vllm.lora.{name}") for name in names)  # type: ignore[return-value]


def read(reader: Any, models: Any, adapters: Path) -> dict[str, Any]:
    """Return each site's adapter as vLLM loads it."""
    loaded = {}
    for number, site in enumerate(SITES, 1):
        helper = reader.PEFTHelper.from_local_dir(str(adapters / site), max_position_embeddings=None)
        helper.validate_legal(types.SimpleNamespace(max_lora_rank=RANK_LIMIT))
        loaded[site] = models.LoRAModel.from_local_checkpoint(
            str(adapters / site), LAYERS, helper, lora_model_id=number, device="cpu", dtype=torch.float32
        )
    return loaded


def compare(operators: Any, loaded: dict[str, Any], base: Path, adapters: Path) -> tuple[int, float, float]:
    """Return the number of layers, and the largest difference and the largest change of a layer's output.

    Each row of the batch belongs to another site, and the last one to none, which is the base model.
    """
    model = AutoModelForCausalLM.from_pretrained(base)
    peft = PeftModel.from_pretrained(model, str(adapters / SITES[0]), adapter_name=SITES[0])
    for site in SITES[1:]:
        peft.load_adapter(str(adapters / site), site)
    names = sorted(loaded[SITES[0]].loras)
    difference, change = 0.0, 0.0
    index = torch.tensor([0, 1, 2, 0, -1])
    for name in names:
        layer = peft.base_model.model.get_submodule(name)
        rows = torch.randn(len(index), layer.in_features, generator=torch.Generator().manual_seed(0))
        a, b = (stacked(loaded, name, part) for part in ("lora_a", "lora_b"))
        output, hidden = layer.base_layer(rows).detach(), torch.zeros(len(index), a.shape[1])
        plain = output.clone()
        scaling = loaded[SITES[0]].loras[name].scaling
        operators.bgmv_shrink(rows, a, hidden, index, scaling)
        operators.bgmv_expand(hidden, b, output, index, add_inputs=True)
        expected = torch.cat([of_peft(peft, layer, rows[[place]], int(site)) for place, site in enumerate(index)])
        difference = max(difference, float((output - expected).abs().max()))
        change = max(change, float((output - plain).abs().max()))
    return len(names), difference, change


def stacked(loaded: dict[str, Any], name: str, part: str) -> torch.Tensor:
    """Return a factor of all sites, (n_sites, rows, columns)."""
    return torch.stack([getattr(loaded[site].loras[name], part) for site in SITES])


def of_peft(peft: PeftModel, layer: Any, row: torch.Tensor, site: int) -> torch.Tensor:
    """Return a layer's output with a site's adapter, or without any for -1."""
    with torch.no_grad():
        if site < 0:
            return layer.base_layer(row)
        peft.set_adapter(SITES[site])
        return layer(row)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("vllm.json"))
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with zipfile.ZipFile(given.wheel) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith("vllm/lora/")])
        adapters = train(given.base, given.rank, folder)
        reader, models, operators = vllms_reader(folder)
        loaded = read(reader, models, adapters)
        layers, difference, change = compare(operators, loaded, given.base, adapters)
    result: Json = {
        "vllm": given.wheel.name.split("-")[1],
        "packages": {name: version(name) for name in ("trifed", "torch", "transformers", "peft")},
        "base": given.base.name,
        "rank": given.rank,
        "adapters": len(loaded),
        "layers": layers,
        "largest_difference_to_peft": difference,
        "largest_change_by_an_adapter": change,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
