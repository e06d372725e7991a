"""Python for a model card that loads an exported folder by plain PEFT and transformers, without this package.

Each snippet is run from inside the exported folder. It defines `classify(texts, pairs=None)`, which returns
probabilities, or, where there is no head, `embed`, which returns pooled features.
"""

from __future__ import annotations

from trifed.settings import Pooling

_POOL: dict[Pooling, str] = {
    "mean": (
        '    mask = batch["attention_mask"].unsqueeze(-1)\n'
        "    pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)\n"
    ),
    "cls": "    pooled = output.last_hidden_state[:, 0]\n",
    "pooler": "    pooled = output.pooler_output\n",
}

_PLAIN_ADAPTER = """base = AutoModel.from_pretrained(BASE, dtype=torch.float32)
encoder = PeftModel.from_pretrained(base, ".").eval()
"""

_FOLDED_ADAPTER = """config = json.load(open("adapter_config.json"))
if config.pop("train") == "core":
    config["lora_alpha"] = config["r"]  # the scale is 1 between frozen frames
config.pop("peft_type")
tensors = load_file("adapter_model.safetensors")
for core in [name for name in tensors if ".lora_C." in name]:
    outer = core.replace(".lora_C.", ".lora_B.")
    tensors[outer] = tensors[outer] @ tensors.pop(core)  # W0 + s B C A is a LoRA with the factor B C
encoder = get_peft_model(AutoModel.from_pretrained(BASE, dtype=torch.float32), LoraConfig(**config))
encoder.eval()
set_peft_model_state_dict(encoder, tensors)
"""

_STOCK = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".").eval()


def classify(texts, pairs=None):
    batch = tokenizer(texts, pairs, padding=True, truncation=True, max_length={length}, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits.softmax(-1)


print(classify({texts}), model.config.id2label)
"""


def of_adapter(base: str, pooling: Pooling, length: int, *, pairs: bool, folded: bool, head: bool) -> str:
    """Load an adapter over `base`. `folded`: it is tri-matrix; `head`: head.safetensors lies beside it."""
    wanted = ["LoraConfig", "get_peft_model", "set_peft_model_state_dict"] if folded else ["PeftModel"]
    lines = ["import json\n", "import torch\n", f"from peft import {', '.join(wanted)}\n"]
    if folded or head:
        lines.append("from safetensors.torch import load_file\n")
    lines += [
        "from transformers import AutoModel, AutoTokenizer\n\n",
        f"BASE = {base!r}\ntokenizer = AutoTokenizer.from_pretrained(BASE)\n",
        _FOLDED_ADAPTER if folded else _PLAIN_ADAPTER,
    ]
    if not (folded or head):
        lines.remove("import json\n")
    return "".join(lines) + _use(pooling, length, pairs=pairs, head=head)


def of_merged(pooling: Pooling, length: int, *, pairs: bool, stock: bool) -> str:
    """Load full weights. `stock`: a class of transformers has the head too."""
    if stock:
        return _STOCK.format(length=length, texts=_example(pairs))
    start = (
        "import json\nimport torch\nfrom safetensors.torch import load_file\n"
        "from transformers import AutoModel, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained(".")\n'
        'encoder = AutoModel.from_pretrained(".").eval()\n'
    )
    return start + _use(pooling, length, pairs=pairs, head=True)


def _use(pooling: Pooling, length: int, *, pairs: bool, head: bool) -> str:
    name = "classify" if head else "embed"
    start = 'head, labels = load_file("head.safetensors"), json.load(open("classifier.json"))["labels"]\n'
    end = '    return (pooled @ head["weight"].T + head["bias"]).softmax(-1)\n' if head else "    return pooled\n"
    return (
        f"{start if head else ''}\n\ndef {name}(texts, pairs=None):\n"
        f"    batch = tokenizer(texts, pairs, padding=True, truncation=True, max_length={length}, "
        'return_tensors="pt")\n'
        f"    with torch.no_grad():\n        output = encoder(**batch)\n{_POOL[pooling]}{end}\n\n"
        f"print({name}({_example(pairs)}){', labels' if head else ''})\n"
    )


def _example(pairs: bool) -> str:
    return '["a text"], ["its second text"]' if pairs else '["a text"]'
