"""A Flower client that trains LoRA with PEFT, after Flower's template for fine-tuning language models.

As there, a call loads the client's data, the tokenizer and the model, puts in the received weights, trains, and
replies with the trained weights. With `keep` in the message's configuration, the process that simulates clients
keeps the model from one call to the next.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from plain_peft import Classifier, Json, Texts, correct, train
from transformers import AutoTokenizer

app = ClientApp()


def load_model(folder: Path) -> tuple[Json, Any, Classifier]:
    """Return the job's settings, the tokenizer and the model."""
    job = json.loads((folder / "job.json").read_text())
    return job, AutoTokenizer.from_pretrained(job["model"]), Classifier(job)


kept_model = cache(load_model)


def _open(message: Message, context: Context) -> tuple[Json, Any, Classifier, Json]:
    torch.set_num_threads(1)  # num_cpus of a client: as many clients at once as there are cores
    config = message.content["config"]
    folder = Path(config["folder"])
    job, tokenizer, model = (kept_model if config["keep"] else load_model)(folder)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
    number = int(context.node_config["partition-id"])
    return job, tokenizer, model, json.loads((folder / f"client-{number:02d}.json").read_text())


@app.train()
def train_client(message: Message, context: Context) -> Message:
    """Train for one round."""
    job, tokenizer, model, file = _open(message, context)
    data = Texts(file["train"], tokenizer, job)
    done = train(model, data, file["batches"][message.content["config"]["server-round"] - 1], job)
    metrics = MetricRecord({**done, "num-examples": len(data.ids)})
    content = RecordDict({"arrays": ArrayRecord(model.trained()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate_client(message: Message, context: Context) -> Message:
    """Score the received weights on the client's test data."""
    job, tokenizer, model, file = _open(message, context)
    data = Texts(file["test"], tokenizer, job)
    accuracy = correct(model, data, job) / len(data.ids)
    metrics = MetricRecord({"accuracy": accuracy, "num-examples": len(data.ids)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
