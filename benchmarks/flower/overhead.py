"""What a round between sites takes beside the training: Flower's own part, and ours.

    python benchmarks/flower/overhead.py [--rounds 10] [--layers 48] [--out overhead.json]

A real SuperLink and SuperNodes on this machine: an app that answers at once with a payload of the same size, for
Flower's own starting of processes and looking for messages, at three sites and at one; a run with MiniLM at three
sites; and one at one site with a model that takes long to load, a BERT of --layers layers of 1,024 with random
weights. A round's overhead is its seconds less those that the slowest site trained. Take no timing beside another
job.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from loopback import corpus, deployment, environment

from trifed.federation.run_folder import RunFolder
from trifed.tasks import TASKS

HERE = Path(__file__).parent
SITES = ["amber", "basil", "coral"]
Json = dict[str, Any]
PAYLOAD = 6352
BARE_CLIENT = f'''"""Answers at once."""

from trifed.deployment.flower import client_app
from trifed.deployment.protocol import Reply

app = client_app(lambda path, request: Reply(parts={{"upload": bytes({PAYLOAD})}}))
'''
BARE_SERVER = '''"""Asks all nodes, again and again, and keeps the seconds."""

import json
import time
from pathlib import Path

from flwr.serverapp import ServerApp

from trifed.deployment.flower import FlowerChannel
from trifed.deployment.protocol import Request

app = ServerApp()


@app.main()
def main(grid, context):
    channel, seconds = FlowerChannel(grid), []
    while len(channel.nodes()) < {sites}:
        time.sleep(0.2)
    for number in range({rounds} + 1):
        began = time.monotonic()
        asked = {{node: Request("train", {{}}, {{"download": bytes({payload})}}) for node in channel.nodes()}}
        assert len(channel.ask(asked, 60)) == {sites}
        seconds.append(time.monotonic() - began)
    Path({out!r}).write_text(json.dumps(seconds[1:]))
'''


def settings(model: str, sites: int, rounds: int) -> Json:
    return {
        "name": "overhead",
        "rounds": rounds,
        "method": "ce-lora",
        "model": {"name": model, "max_length": 16},
        "adapter": {"rank": 16, "target_modules": ["query"]},
        "data": {"source": "none", "labels": sorted({row["label"] for row in corpus()})},
        "training": {"steps": 2, "batch_size": 2, "device": "cpu", "precision": "fp32"},
        "deployment": {"clients": sites, "join_seconds": 300, "round_seconds": 300, "quorum": sites},
    }


def bare(sites: list[str], rounds: int) -> Json:
    """Flower's own part: seconds of a round in which nobody does anything."""
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "seconds.json"

        def prepare(server: Path) -> None:
            app = server / "app" / "overhead"
            (app / "client.py").write_text(BARE_CLIENT)
            asked = BARE_SERVER.format(sites=len(sites), rounds=rounds, payload=PAYLOAD, out=str(out))
            (app / "server.py").write_text(asked)

        with deployment(folder, settings("demo", len(sites), rounds), sites, prepare=prepare):
            while not out.is_file():
                time.sleep(0.2)
            time.sleep(0.2)
            return spread(json.loads(out.read_text()))


def run(model: str, sites: list[str], rounds: int) -> Json:
    """A run; its rounds' seconds beside the training, and how often the model was loaded."""
    began = time.monotonic()
    TASKS["text-classification"].load(model, "float32")
    loading = time.monotonic() - began
    with tempfile.TemporaryDirectory() as name:
        folder, pids = Path(name), set()
        with deployment(folder, settings(model, len(sites), rounds), sites) as path:
            events: list[Json] = []
            while not any(event["event"] == "finished" for event in events):
                time.sleep(0.5)
                told = subprocess.run(
                    ["pgrep", "-f", f"trifed.deployment.worker {folder}"],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                pids |= set(told.stdout.split())
                events = RunFolder(path).events() if (path / "events.jsonl").is_file() else []
    beside = []
    for event in (event for event in events if event["event"] == "round"):
        mine = [e["seconds"] for e in events if e["event"] == "trained" and e["round"] == event["round"]]
        beside.append(event["seconds"] - max(mine))
    return {"seconds_to_load": loading, "processes_with_the_model": len(pids), "sites": len(sites)} | {
        "beside_the_training": spread(beside[1:])
    }


def spread(seconds: list[float]) -> Json:
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds), "all": seconds}


def large(folder: Path, layers: int) -> str:
    """A BERT with random weights and MiniLM's tokenizer."""
    from transformers import BertConfig, BertModel

    from trifed.tasks.base_model import read_config

    source, _ = read_config("demo")
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    wide = BertConfig(hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=4096)
    BertModel(wide).save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--out", type=Path, default=HERE / "overhead.json")
    given = parser.parse_args()
    result: Json = {"rounds": given.rounds, "layers": given.layers, "environment": environment()}
    for sites in (SITES, SITES[:1]):
        found = result[f"bare, {len(sites)} sites"] = bare(sites, given.rounds)
        print("bare", len(sites), json.dumps(found), flush=True)
    result["MiniLM"] = run("demo", SITES, given.rounds)
    print("MiniLM", json.dumps(result["MiniLM"]), flush=True)
    with tempfile.TemporaryDirectory() as name:
        result["large"] = run(large(Path(name) / "model", given.layers), SITES[:1], given.rounds)
    print("large", json.dumps(result["large"]), flush=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
