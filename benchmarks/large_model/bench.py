"""What federation costs on a large model: eight clients on one Llama-7B-shaped base against plain PEFT LoRA.

    python benchmarks/large_model/bench.py [--layers 32] [--hidden 4096] [--rounds 2] [--steps 20]

Random weights in bfloat16, random words, sequence classification with the head that `trifed run` trains; needs a
GPU of 40 GB for the default shape. One process: first a plain PEFT LoRA model with nothing around it, then the
simulator with eight clients and the same number of steps on batches of the same shape. Reported: peak memory over
the base's own bytes, tokens a second as a ratio, and how much of a client's round goes into swapping its tensors.
Both with activations kept and, with half as many steps a round, computed again (`gradient_checkpointing`).
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from trifed import make_config
from trifed.data import make_clients
from trifed.federation import client_update as client_module
from trifed.federation.client_update import ClientDataset
from trifed.federation.preparation import environment
from trifed.federation.run_folder import RunFolder
from trifed.federation.simulation import Simulation
from trifed.federation.training.batches import epoch_batches, seeded
from trifed.federation.training.device_placement import autocast
from trifed.federation.training.local_training import train_locally
from trifed.federation.training.shared_model import SharedModel, build_shared_model
from trifed.methods import METHODS
from trifed.tasks.base_model import LoadedBase

HERE = Path(__file__).parent
Json = dict[str, Any]
CLIENTS, EXAMPLES, WORDS, BATCH, RANK = 8, 60, 256, 4, 8
VOCABULARY = 32000
REPEATS = 5
"""Of plain training, after one that is not timed."""


def random_llama(kind: Any, layers: int, hidden: int, device: str, **more: Any) -> Any:
    """A model of Llama's shape with random weights in bfloat16; `kind`: transformers' class."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 128),
        vocab_size=VOCABULARY,
        pad_token_id=0,
        **more,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = kind(config)
    torch.set_default_dtype(torch.float32)
    return model


def thousand_words(**more: Any) -> PreTrainedTokenizerFast:
    """A tokenizer that knows `w1` to `w999`."""
    words = WordLevel({"[PAD]": 0, **{f"w{number}": number for number in range(1, 1000)}}, unk_token="[PAD]")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", **more)


def make_base(layers: int, hidden: int, device: str) -> LoadedBase:
    """A model with random weights as `trifed` holds one."""
    model = random_llama(LlamaModel, layers, hidden, device)
    model.requires_grad_(False)
    fast = thousand_words(model_input_names=["input_ids", "attention_mask"])
    return LoadedBase(model, fast, f"Llama shape, {layers} layers of {hidden}, random weights", "random")


def write_table(path: Path) -> None:
    """EXAMPLES texts of WORDS random words for each client, two labels."""
    rng = random.Random(0)
    rows = [
        {"text": " ".join(f"w{rng.randrange(1, 1000)}" for _ in range(WORDS)), "label": str(n % 2), "client": c}
        for c in (f"client-{number}" for number in range(CLIENTS))
        for n in range(EXAMPLES)
    ]
    pd.DataFrame(rows).to_parquet(path)


def settings(table: Path, method: str, given: argparse.Namespace, again: bool) -> Json:
    return {
        "rounds": given.rounds,
        "evaluate_every": given.rounds,
        "controls": False,
        "baselines": [],
        "method": method,
        "model": {"max_length": WORDS},
        "adapter": {} if method == "own-prior" else {"rank": RANK},
        "data": {
            "source": str(table),
            "valid_fraction": 0.1,
            "test_fraction": 0.1,
            "clients": {"split": "column", "column": "client"},
        },
        "training": {
            "batch_size": BATCH,
            "eval_batch_size": BATCH,
            "steps": given.steps // 2 if again else given.steps,
            "device": given.device,
            "gradient_checkpointing": again,
        },
    }


class Memory:
    """The peak of a GPU's memory since it was made, in bytes; 0 on a CPU."""

    def __init__(self, device: str) -> None:
        self.on = device.startswith("cuda")
        gc.collect()
        if self.on:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.on else 0

    def now(self) -> int:
        return torch.cuda.memory_allocated() if self.on else 0


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def federated(method: str, shape: tuple[int, int], given: argparse.Namespace, work: Path, again: bool) -> Json:
    """The simulator with all clients: its memory and the time of every client's round after the first."""
    memory = Memory(given.device)
    base = make_base(*shape, given.device)
    alone = memory.now()
    config = make_config(settings(work / "table.parquet", method, given, again))
    data = make_clients(config.data, 0)
    began = time.perf_counter()
    bench = build_shared_model(
        base, METHODS[method], len(data.label_names), 0, (config.model, config.adapter, config.training)
    )
    wait(given.device)
    attaching = time.perf_counter() - began
    clients = [
        ClientDataset(i, c.name, bench.encode(c.train), bench.encode(c.valid), bench.encode(c.test))
        for i, c in enumerate(data.clients)
    ]
    seconds: list[float] = []
    training: list[float] = []

    def timed(*given_to: Any, **more: Any) -> Any:
        wait(given.device)
        began = time.perf_counter()
        done = train_locally(*given_to, **more)
        wait(given.device)
        training.append(time.perf_counter() - began)
        return done

    def listen(event: Json) -> None:
        if event["event"] == "trained" and event["round"] > 1:
            seconds.append(event["seconds"])

    folder = RunFolder.create(work / f"{method}-{again}")
    with patch.object(client_module, "train_locally", timed):
        Simulation(config, data, clients, bench, folder, listen).run()
    loop = statistics.median(training[CLIENTS:])
    steps = config.training.steps or 0
    found = {
        "base_gib": gib(alone),
        "peak_gib": gib(memory.peak()),
        "attach_seconds": round(attaching, 2),
        "client_round_seconds": round(statistics.median(seconds), 4),
        "training_seconds": round(loop, 4),
        "tokens_per_second": round(steps * BATCH * WORDS / statistics.median(seconds)),
        "tokens_per_second_while_training": round(steps * BATCH * WORDS / loop),
        "switch_milliseconds": round(1000 * switch(bench, given.device), 2),
        "trained_parameters": sum(p.numel() for p in bench.parameters.values()),
        "environment": environment(config, base, bench),
    }
    found["switch_share_of_round"] = round(found["switch_milliseconds"] / 1000 / found["client_round_seconds"], 4)
    return found


def switch(bench: SharedModel, device: str) -> float:
    """Seconds to take one client's tensors and moments out and put another's in, the median of ten."""
    spent = []
    moments = [param.detach().clone() for param in bench.parameters.values() for _ in range(2)]
    for _ in range(10):
        wait(device)
        began = time.perf_counter()
        bench.load(bench.take())
        moments = [tensor.to("cpu", copy=True).to(device, copy=True) for tensor in moments]
        wait(device)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def plain(shape: tuple[int, int], given: argparse.Namespace, work: Path, again: bool) -> Json:
    """PEFT's LoRA and a head in the shortest training loop, one client: its memory and time."""
    memory = Memory(given.device)
    base = make_base(*shape, given.device)
    alone = memory.now()
    write_table(work / "table.parquet")
    config = make_config(settings(work / "table.parquet", "fedavg-lora", given, False))
    data = make_clients(config.data, 0)
    bench = build_shared_model(
        base, METHODS["fedavg-lora"], 2, 0, (config.model, config.adapter, config.training)
    )  # for its tokeniser alone
    encoded = bench.encode(data.clients[0].train)
    encoder = bench.encoder.unload()
    model = get_peft_model(
        encoder, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    )
    if again:
        encoder.gradient_checkpointing_enable({"use_reentrant": False})
    head = nn.Linear(shape[1], 2).to(given.device)
    params = [*(p for p in model.parameters() if p.requires_grad), *head.parameters()]
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=True)
    steps = given.steps // 2 if again else given.steps
    rows = epoch_batches(encoded.lengths, BATCH, seeded(0, 1))[:steps]
    device, precision = torch.device(given.device), torch.bfloat16
    seconds = []
    model.train()
    for _ in range(1 + REPEATS):
        wait(given.device)
        began = time.perf_counter()
        for step in range(steps):
            batch = encoded.batch(rows[step % len(rows)], device)
            with autocast(device, precision):
                hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
                mask = batch["attention_mask"].unsqueeze(-1).float()
                pooled = (hidden.last_hidden_state.float() * mask).sum(1) / mask.sum(1)
                loss = nn.functional.cross_entropy(head(pooled).float(), batch["labels"])
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        wait(given.device)
        seconds.append(time.perf_counter() - began)
    spent = statistics.median(seconds[1:])
    return {
        "base_gib": gib(alone),
        "peak_gib": gib(memory.peak()),
        "seconds_for_as_many_steps": round(spent, 4),
        "tokens_per_second": round(steps * BATCH * WORDS / spent),
        "trained_parameters": sum(p.numel() for p in params),
    }


def gib(size: float) -> float:
    return round(size / 2**30, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", nargs="+", default=["fedavg-lora", "ce-lora", "own-prior"])
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    shape = (given.layers, given.hidden)
    result: Json = {
        "clients": CLIENTS, "batch_size": BATCH, "tokens_a_text": WORDS, "rank": RANK, "layers": given.layers,
        "hidden": given.hidden, "rounds": given.rounds, "steps": given.steps,
    }  # fmt: skip
    kept, again = [(False, method) for method in given.methods], [(True, method) for method in given.methods[:1]]
    with tempfile.TemporaryDirectory() as folder:
        for repeats, method in [*again, *kept]:
            part = result.setdefault("activations-again" if repeats else "activations-kept", {})
            if not part:
                part["plain-peft-lora"] = plain(shape, given, Path(folder), repeats)
                print(repeats, "plain", json.dumps(part["plain-peft-lora"]), flush=True)
            rival, found = part["plain-peft-lora"], federated(method, shape, given, Path(folder), repeats)
            result["environment"] = found.pop("environment")
            while_training = found["tokens_per_second_while_training"]
            found["training_against_plain"] = round(while_training / rival["tokens_per_second"], 4)
            found["speed_against_plain"] = round(found["tokens_per_second"] / rival["tokens_per_second"], 4)
            found["peak_over_plain"] = round(found["peak_gib"] / max(rival["peak_gib"], 1e-9), 4)
            found["peak_over_base"] = round(found["peak_gib"] / max(found["base_gib"], 1e-9), 4)
            part[method] = found
            given.out.write_text(json.dumps(result, indent=1) + "\n")
            print(repeats, method, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
