"""Export one site's model as plain LoRA, and use it with PEFT and transformers alone."""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from trifed import export_client, make_config, run
from trifed.data import demo_corpus_path


def main(table: str = str(demo_corpus_path()), model: str = "demo", rounds: int = 3) -> Path:
    """Train, export the model of the first site, and classify a text with it; return the exported folder."""
    config = make_config(
        {
            "name": "export-to-peft",
            "rounds": rounds,
            "model": {"name": model, "max_length": 48},
            "data": {"source": table, "clients": {"split": "column", "column": "site"}},
        }
    )
    result = run(config)
    site = result.summary["clients"][0]["name"]
    folder = export_client(result.path, site, "lora")
    print(f"{folder} holds {sorted(path.name for path in folder.iterdir())}")
    print(classify(folder, ["where is my parcel?"]))
    return folder


def classify(folder: Path, texts: list[str]) -> list[dict[str, float]]:
    """Return the probability of each label for each text; no line of this function needs trifed."""
    adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    facts = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    base = adapter["base_model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoder = PeftModel.from_pretrained(AutoModel.from_pretrained(base, dtype=torch.float32), folder).eval()
    head = load_file(folder / "head.safetensors")

    batch = tokenizer(texts, padding=True, truncation=True, max_length=facts["max_length"], return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = (hidden * mask).sum(1) / mask.sum(1)  # facts["pooling"] is "mean"
    probabilities = (pooled @ head["weight"].T + head["bias"]).softmax(-1)
    return [dict(zip(facts["labels"], row.tolist(), strict=True)) for row in probabilities]


if __name__ == "__main__":
    main(*sys.argv[1:])
