"""Federated averaging of LoRA in Flower's simulation, with Ray and one core for each client.

python benchmarks/speed/flower_server.py JOB_FOLDER OUT.json [--keep-model]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import flower_client
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep-model", action="store_true", help="keep the base model in the clients' processes")
    given = parser.parse_args()
    job, _, model = flower_client.load_model(given.folder)
    server = ServerApp()

    @server.main()
    def _(grid: Grid, context: Context) -> None:
        evaluated, clients = job["evaluated"], job["clients"]
        strategy = FedAvg(
            fraction_evaluate=float(evaluated),
            min_train_nodes=clients,
            min_evaluate_nodes=clients if evaluated else 0,
            min_available_nodes=clients,
        )
        told = {"folder": str(given.folder), "keep": given.keep_model}
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(model.trained()),
            num_rounds=job["rounds"],
            train_config=ConfigRecord(told),
            evaluate_config=ConfigRecord(told),
        )
        trained = list(result.train_metrics_clientapp.values())  # means over the clients, weighted alike
        scored = result.evaluate_metrics_clientapp.values()
        names = ("steps", "examples", "padded_tokens")
        work = {name: round(clients * sum(metrics[name] for metrics in trained)) for name in names}
        losses, accuracies = [metrics["loss"] for metrics in trained], [metrics["accuracy"] for metrics in scored]
        given.out.write_text(json.dumps({"losses": losses, "accuracies": accuracies, **work}))

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, flower_client.app, job["clients"], backend_config=resources)


if __name__ == "__main__":
    main()
