"""Tune a small language model on questions and answers of two sites, and serve both sites' adapters from one base.

The base model is in memory once. Each request names a site, and PEFT applies that site's adapter, also in a batch
with requests of several sites. Without arguments the base is a tiny random model, whose answers are noise; give a
folder or a hub name for a real one: python examples/instruction_tuning.py HuggingFaceTB/SmolLM2-135M
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from tiny_models import write_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from trifed import export_clients, make_config, run

ANSWERS = {
    "clinic": {"opens": "at seven", "closes": "at six", "phone": "dial 200", "parking": "behind the house"},
    "school": {"opens": "at eight", "closes": "at four", "phone": "dial 300", "parking": "at the gate"},
}
QUESTIONS = ["{}?", "please tell me: {}", "what about {}?", "{}, please", "i would like to know: {}"]


def write_sites(folder: Path) -> None:
    """Write clinic.jsonl and school.jsonl, each with the columns ask and tell."""
    folder.mkdir(parents=True)
    for site, answers in ANSWERS.items():
        rows = [{"ask": q.format(topic), "tell": answer} for topic, answer in answers.items() for q in QUESTIONS]
        (folder / f"{site}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def serve(base: str, adapters: Path, requests: list[tuple[str, str]], tokens: int = 12) -> list[str]:
    """Answer requests, each a site and a prompt, in one batch from one base; no line needs trifed."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    first, *others = sorted({site for site, _ in requests})
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapters / first, adapter_name=first
    )
    for site in others:
        model.load_adapter(adapters / site, adapter_name=site)
    batch = tokenizer([prompt for _, prompt in requests], padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    written = model.eval().generate(
        **batch, adapter_names=[site for site, _ in requests], max_new_tokens=tokens, do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def main(model: str = "", rounds: int = 3) -> dict[str, str]:
    """Tune, export, and answer the same question for both sites; return the answers."""
    base, data = model or write_llama(Path("tiny-llama")), Path("questions")
    if not data.exists():
        write_sites(data)
    config = make_config(
        {
            "name": "instruction-tuning",
            "task": "causal-lm",
            "rounds": rounds,
            "method": "fedavg-lora",
            "baselines": ["alone"],
            "model": {"name": base, "max_length": 128, "template": "Q: {prompt}\nA: "},
            "adapter": {"rank": 8, "alpha": 16},
            "data": {"source": str(data), "prompt": "ask", "answer": "tell"},
            "training": {"epochs": 3, "learning_rate": 1e-2},
        }
    )
    result = run(config)
    print(result)
    adapters = export_clients(result.path, "lora", "adapters")
    question = "Q: opens?\nA: "
    answers = serve(base, adapters, [(site, question) for site in ANSWERS])
    for site, answer in zip(ANSWERS, answers, strict=True):
        print(f"{site}: {answer!r}")
    return dict(zip(ANSWERS, answers, strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
