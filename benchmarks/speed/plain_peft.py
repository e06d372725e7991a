"""Federated averaging of LoRA by hand: PEFT, one base model, one client after the other.

    python benchmarks/speed/plain_peft.py JOB_FOLDER OUT.json

This is what a person would write who knows PEFT and has no framework. `job.py` writes the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

Json = dict[str, Any]
State = dict[str, Tensor]


class Classifier(nn.Module):
    """A frozen encoder with LoRA, mean pooling, and a linear head."""

    def __init__(self, job: Json) -> None:
        super().__init__()
        base = AutoModel.from_pretrained(job["model"], dtype=torch.float32)
        lora = LoraConfig(r=job["rank"], lora_alpha=job["alpha"], target_modules=job["target_modules"])
        torch.manual_seed(job["seed"])  # both seeds as in trifed, so that all start alike
        self.encoder = get_peft_model(base, lora)
        torch.manual_seed(job["seed"] + 1)
        self.head = nn.Linear(base.config.hidden_size, job["labels"])

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        return self.head((hidden * mask).sum(1) / mask.sum(1)).float()

    def trained(self) -> State:
        """Copies of what clients train and send."""
        return {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}


class Texts:
    """A part of one client's data, tokenised once and padded batch by batch."""

    def __init__(self, part: Json, tokenizer: Any, job: Json) -> None:
        kept = tokenizer(part["texts"], truncation=True, max_length=job["max_length"]) if part["texts"] else {}
        self.tokenizer, self.ids = tokenizer, kept.get("input_ids", [])
        self.labels = torch.tensor(part["labels"], dtype=torch.long)

    def batch(self, rows: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        inputs = self.tokenizer.pad({"input_ids": [self.ids[row] for row in rows]}, return_tensors="pt")
        return dict(inputs), self.labels[rows]


def train(model: Classifier, data: Texts, batches: list[list[int]], job: Json) -> Json:
    """Train on the given batches; return the mean loss, and how much was done."""
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, job["learning_rate"], weight_decay=job["weight_decay"], fused=True)
    done = {"loss": 0.0, "steps": len(batches), "examples": 0, "padded_tokens": 0}
    model.train()
    for rows in batches:
        inputs, labels = data.batch(rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=job["bf16"]):
            loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(params, job["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        done["loss"] += loss.item() / len(batches)
        done["examples"] += len(rows)
        done["padded_tokens"] += inputs["input_ids"].numel()
    return done


@torch.no_grad()
def correct(model: Classifier, data: Texts, job: Json, size: int = 32) -> int:
    """Number of texts that are predicted right."""
    model.eval()
    order, right = sorted(range(len(data.ids)), key=lambda row: len(data.ids[row])), 0
    for first in range(0, len(order), size):
        inputs, labels = data.batch(order[first : first + size])
        with torch.autocast("cpu", torch.bfloat16, enabled=job["bf16"]):
            right += int((model(inputs).argmax(-1) == labels).sum())
    return right


def main(folder: Path, out: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    files = [json.loads((folder / f"client-{n:02d}.json").read_text()) for n in range(job["clients"])]
    clients = [{part: Texts(file[part], tokenizer, job) for part in ("train", "test")} for file in files]
    model, accuracies, done = Classifier(job), [], []
    average = model.trained()
    for number in range(job["rounds"]):
        total = {name: torch.zeros_like(tensor) for name, tensor in average.items()}
        examples = sum(len(client["train"].ids) for client in clients)
        for client, file in zip(clients, files, strict=True):
            model.load_state_dict(average, strict=False)
            done.append(train(model, client["train"], file["batches"][number], job) | {"round": number})
            for name, tensor in model.trained().items():
                total[name].add_(tensor, alpha=len(client["train"].ids) / examples)
        average = total
        if job["evaluated"]:
            model.load_state_dict(average, strict=False)
            right = sum(correct(model, client["test"], job) for client in clients)
            accuracies.append(right / sum(len(client["test"].ids) for client in clients))
    losses = [sum(d["loss"] for d in done if d["round"] == r) / job["clients"] for r in range(job["rounds"])]
    work = {name: sum(d[name] for d in done) for name in ("steps", "examples", "padded_tokens")}
    out.write_text(json.dumps({"losses": losses, "accuracies": accuracies, **work}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
