"""Python for a model card that loads an exported folder by plain PEFT and transformers, without this package.

Each snippet is run from inside the exported folder. It defines `classify(texts, pairs=None)`, or of an image model
`classify(images)`, which returns probabilities; where there is no head, `embed`, which returns pooled features.
"""

from __future__ import annotations

from dataclasses import dataclass

from trifed.common.errors import AdapterError
from trifed.config.settings import Pooling
from trifed.tasks import Snippet, Task
from trifed.tasks.prompts import CHAT, WITHOUT

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

_STOCK = """{imports}import torch
from transformers import {classes}

processor = {processor}.from_pretrained(".")
model = {model}.from_pretrained(".").eval()


def classify({arguments}):
    batch = {batch}
    with torch.no_grad():
        return model(**batch).logits.softmax(-1)


print(classify({example}), model.config.id2label)
"""


def adapter_imports(*, folded: bool) -> str:
    """What `adapter_code` needs of PEFT."""
    wanted = ["LoraConfig", "get_peft_model", "set_peft_model_state_dict"] if folded else ["PeftModel"]
    return f"from peft import {', '.join(wanted)}\n"


def adapter_code(*, folded: bool, model: str = "AutoModel") -> str:
    """`encoder`: `BASE` with the adapter of the folder; `model`: transformers' class."""
    return (_FOLDED_ADAPTER if folded else _PLAIN_ADAPTER).replace("AutoModel.", f"{model}.")


@dataclass(frozen=True)
class Asked:
    """What a classifier's snippet is about. `pairs`: does the model read two texts?"""

    task: Task
    pooling: Pooling
    length: int
    pairs: bool

    @property
    def snippet(self) -> Snippet:
        """The task's pieces; AdapterError where it has none."""
        if self.task.snippet is None:
            raise AdapterError(f"a model card of the task '{self.task.name}' is not written yet")
        return self.task.snippet

    @property
    def batch(self) -> str:
        """The expression that makes a batch."""
        return self.snippet.batch.replace("{length}", str(self.length))

    @property
    def example(self) -> str:
        """Arguments of a call."""
        return self.snippet.pair_example if self.pairs else self.snippet.example

    @property
    def imports(self) -> str:
        """What the example needs."""
        return "from PIL import Image\n" if "Image." in self.example else ""


def of_adapter(base: str, asked: Asked, *, folded: bool, head: bool) -> str:
    """Load an adapter over `base`. `folded`: it is tri-matrix; `head`: head.safetensors lies beside it."""
    lines = ["import json\n", "import torch\n", adapter_imports(folded=folded), asked.imports]
    if folded or head:
        lines.append("from safetensors.torch import load_file\n")
    lines += [
        f"from transformers import {_sorted('AutoModel', asked.snippet.processor)}\n\n",
        f"BASE = {base!r}\nprocessor = {asked.snippet.processor}.from_pretrained(BASE)\n",
        adapter_code(folded=folded),
    ]
    if not (folded or head):
        lines.remove("import json\n")
    return "".join(lines) + _use(asked, head=head)


def of_merged(asked: Asked, *, stock: bool) -> str:
    """Load full weights. `stock`: a class of transformers has the head too."""
    processor = asked.snippet.processor
    if stock:
        model = asked.task.native_class.__name__
        return _STOCK.format(
            imports=asked.imports, classes=_sorted(model, processor), processor=processor, model=model,
            arguments=asked.snippet.arguments, batch=asked.batch, example=asked.example,
        )  # fmt: skip
    start = (
        f"import json\nimport torch\n{asked.imports}from safetensors.torch import load_file\n"
        f"from transformers import {_sorted('AutoModel', processor)}\n\n"
        f'processor = {processor}.from_pretrained(".")\n'
        'encoder = AutoModel.from_pretrained(".").eval()\n'
    )
    return start + _use(asked, head=True)


def of_language_model(base: str | None, template: str | None, *, folded: bool, images: bool) -> str:
    """Load an adapter over `base`, or full weights where there is none, and answer one prompt.

    `template`: `[model] template` of the run; `images`: does it read one with every prompt?
    """
    model, reads = (
        ("AutoModelForImageTextToText", "AutoProcessor") if images else ("AutoModelForCausalLM", "AutoTokenizer")
    )
    lines = ["import json\n"] if base and folded else []
    lines.append("import torch\n")
    if base:
        lines.append(adapter_imports(folded=folded))
    lines += ["from PIL import Image\n"] if images else []
    lines += ["from safetensors.torch import load_file\n"] if base and folded else []
    lines.append(f"from transformers import {_sorted(model, reads)}\n\n")
    if base:
        lines.append(f"BASE = {base!r}\nprocessor = {reads}.from_pretrained(BASE)\n")
        lines.append(adapter_code(folded=folded, model=model))
    else:
        lines.append(f'processor = {reads}.from_pretrained(".")\n')
        lines.append(f'encoder = {model}.from_pretrained(".").eval()\n')
    return "".join(lines) + (_answers_about_images(template) if images else _answers_prompts(template))


def _answers_prompts(template: str | None) -> str:
    batch = _CHAT if template == CHAT else _PROMPT.format(template or WITHOUT)
    return _ANSWER.format(
        arguments="prompt", batch=batch, end="processor.eos_token_id", example='"How do I reset my password?"'
    )


def _answers_about_images(template: str | None) -> str:
    written = _SPOKEN if template == CHAT else _WRITTEN.replace("TEMPLATE", repr(template or WITHOUT))
    return written + _ANSWER.format(
        arguments="image, prompt",
        batch='processor(images=image, text=written(prompt), return_tensors="pt")',
        end="processor.tokenizer.eos_token_id",
        example='Image.new("RGB", (64, 64)), "What is this?"',
    )


_ANSWER = """

def answer({arguments}, tokens=64):
    batch = {batch}
    with torch.no_grad():
        made = encoder.generate(**batch, max_new_tokens=tokens, do_sample=False, pad_token_id={end})
    return processor.decode(made[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()


print(answer({example}))
"""
_PROMPT = 'processor({!r}.replace("{{prompt}}", prompt).replace("{{input}}", ""), return_tensors="pt")'
_CHAT = (
    'processor.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, '
    'return_dict=True, return_tensors="pt")'
)
_WRITTEN = """

def written(prompt):
    text = TEMPLATE.replace("{prompt}", prompt).replace("{input}", "")
    return text if processor.image_token in text else processor.image_token + "\\n" + text
"""
_SPOKEN = """

def written(prompt):
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
"""


def _sorted(*names: str) -> str:
    return ", ".join(sorted(names))


def _use(asked: Asked, *, head: bool) -> str:
    name = "classify" if head else "embed"
    start = 'head, labels = load_file("head.safetensors"), json.load(open("classifier.json"))["labels"]\n'
    end = '    return (pooled @ head["weight"].T + head["bias"]).softmax(-1)\n' if head else "    return pooled\n"
    return (
        f"{start if head else ''}\n\ndef {name}({asked.snippet.arguments}):\n"
        f"    batch = {asked.batch}\n"
        "    with torch.no_grad():\n        output = encoder(**batch)\n"
        f"{asked.snippet.pool[asked.pooling]}{end}\n\n"
        f"print({name}({asked.example}){', labels' if head else ''})\n"
    )
