"""What a base in 16, 8 and 4 bits costs: memory, speed and the loss after a few rounds, of `trifed run` as it is.

    python benchmarks/large_model/quantised.py [--layers 8] [--hidden 4096] [--methods fedavg-lora] [--dtypes nf4]

A causal language model of Llama's shape with random weights, saved and loaded again as a user's would be, on two
sites whose texts are repetitions; their losses fall quickly, also over random weights, and show that a base in few
bits still passes gradients. Needs a GPU and `pip install '.[quantized]'`; on a CPU memory reads 0.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from bench import Memory, gib, random_llama, thousand_words
from transformers import LlamaForCausalLM

from trifed import make_config, run

HERE = Path(__file__).parent
Json = dict[str, Any]
RATES: Json = {"fedavg-lora": {"learning_rate": 1e-3}}
"""Otherwise the method's own."""
WORDS, EXAMPLES, BATCH, STEPS, ROUNDS = 128, 80, 8, 10, 3


def save_base(folder: Path, given: argparse.Namespace) -> None:
    """Random weights in bfloat16, and a tokenizer that knows `w1` to `w999`."""
    ends: Json = {"bos_token_id": None, "eos_token_id": None}
    random_llama(LlamaForCausalLM, given.layers, given.hidden, given.device, **ends).save_pretrained(folder)
    thousand_words(eos_token="w999").save_pretrained(folder)


def write_table(path: Path) -> None:
    """Texts in which five words of a site's own follow each other again and again, and one word in ten is any."""
    rng = random.Random(0)
    rows = []
    for site in ("north", "south"):
        cycle = [f"w{rng.randrange(1, 900)}" for _ in range(5)]
        for _ in range(EXAMPLES):
            start = rng.randrange(5)
            words = [
                f"w{rng.randrange(1, 900)}" if rng.random() < 0.1 else cycle[n % 5]
                for n in range(start, start + WORDS)
            ]
            rows.append({"text": " ".join(words), "site": site})
    pd.DataFrame(rows).to_parquet(path)


def measure(base: Path, table: Path, method: str, dtype: str, given: argparse.Namespace, out: Path) -> Json:
    """One run: the base's memory, the peak, tokens a second, and how the loss fell."""
    memory, at_start, seconds = Memory(given.device), 0, []

    def listen(event: Json) -> None:
        nonlocal at_start
        if event["event"] == "started":
            at_start = memory.now()
        if event["event"] == "trained" and event["round"] > 1:
            seconds.append(event["seconds"])

    values = {
        "task": "causal-lm",
        "rounds": ROUNDS,
        "evaluate_every": ROUNDS,
        "controls": False,
        "baselines": [],
        "method": method,
        "model": {"name": str(base), "max_length": WORDS, "dtype": dtype},
        "data": {"source": str(table), "text": "text", "clients": {"split": "column", "column": "site"}},
        "training": {"batch_size": BATCH, "steps": STEPS, "device": given.device, **RATES.get(method, {})},
    }
    done = run(make_config(values), out, listen)
    clients = done.summary["clients"]
    return {
        "base_and_adapter_gib": gib(at_start),
        "peak_gib": gib(memory.peak()),
        "tokens_per_second": round(STEPS * BATCH * WORDS / statistics.median(seconds)),
        "loss_before": round(statistics.mean(c["before"]["loss"] for c in clients), 3),
        "loss_after": round(statistics.mean(c["now"]["loss"] for c in clients), 3),
        "seconds_in_all": done.summary["seconds_total"],
        "environment": json.loads((done.path / "environment.json").read_text()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", nargs="+", default=["fedavg-lora"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8", "nf4"])
    parser.add_argument("--out", type=Path, default=HERE / "quantised.json")
    given = parser.parse_args()
    result: Json = {
        "layers": given.layers,
        "hidden": given.hidden,
        "words": WORDS,
        "batch_size": BATCH,
        "runs": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        base, table = Path(folder) / "base", Path(folder) / "table.parquet"
        save_base(base, given)
        write_table(table)
        for method in given.methods:
            for dtype in given.dtypes:
                found = measure(base, table, method, dtype, given, Path(folder) / f"{method}-{dtype}")
                result["environment"] = found.pop("environment")
                result["runs"][f"{method} {dtype}"] = found
                given.out.write_text(json.dumps(result, indent=1) + "\n")
                print(method, dtype, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
