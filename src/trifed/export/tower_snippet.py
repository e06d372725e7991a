"""Python for the cards of models of images and texts, which work without this package."""

from __future__ import annotations

from collections.abc import Sequence

from trifed.export.snippets import adapter_code, adapter_imports


def of_two_towers(base: str | None, labels: Sequence[str], prompt: str, *, folded: bool, head: bool) -> str:
    """Load an adapter over `base`, or full weights where there is none, and classify images.

    `prompt`: `[model] class_prompt` of the run; `folded`: the adapter is tri-matrix; `head`: head.safetensors,
    with a bias for each class, lies beside it.
    """
    return (
        _loading(base, folded=folded, tensors=head)
        + _START.replace("LABELS", repr(list(labels))).replace("PROMPT", repr(prompt))
        + _READ.replace("LENGTH", "towers.config.text_config.max_position_embeddings")
        + "words = read(sentences)\n"
        + ('bias = load_file("head.safetensors")["bias"]\n' if head else "bias = 0.0\n")
        + _USE
    )


def of_captions(base: str | None, length: int, *, folded: bool) -> str:
    """The same of a model of captions: which of some texts fits an image? `length`: tokens that a text may be."""
    most = f"min({length}, towers.config.text_config.max_position_embeddings)"
    return _loading(base, folded=folded, tensors=False) + _READ.replace("LENGTH", most) + _USE_ANY


def _loading(base: str | None, *, folded: bool, tensors: bool) -> str:
    source = repr(base) if base else '"."'
    return (
        ("import json\n" if base and folded else "")
        + "import torch\n"
        + (adapter_imports(folded=folded) if base else "")
        + "from PIL import Image\n"
        + ("from safetensors.torch import load_file\n" if tensors or (base and folded) else "")
        + "from torch.nn.functional import normalize\n"
        + "from transformers import AutoImageProcessor, AutoModel, AutoTokenizer\n\n"
        + f"BASE = {source}\n"
        + "processor, tokenizer = AutoImageProcessor.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)\n"
        + (adapter_code(folded=folded) if base else "encoder = AutoModel.from_pretrained(BASE).eval()\n")
        + f"towers = encoder{'.get_base_model()' if base else ''}\n"
    )


_START = """labels = LABELS
sentences = [PROMPT.replace("{}", label.replace("_", " ")) for label in labels]
"""
_READ = """fixed = towers.config.model_type.startswith("siglip")  # it reads texts of one length, padding and all


def read(texts):
    return tokenizer(
        texts, padding="max_length" if fixed else True, truncation=True, return_tensors="pt",
        max_length=LENGTH,
        return_attention_mask=not fixed, return_token_type_ids=False,
    )


"""
_USE = """

def classify(images):
    batch = processor([image.convert("RGB") for image in images], return_tensors="pt")
    with torch.no_grad():
        seen = normalize(towers.get_image_features(**batch).pooler_output, dim=-1)
        said = normalize(towers.get_text_features(**words).pooler_output, dim=-1)
        logits = seen @ said.T * towers.logit_scale.exp() + getattr(towers, "logit_bias", 0.0)
    return (logits + bias).softmax(-1)


print(classify([Image.new("RGB", (64, 64))]), labels)
"""
_USE_ANY = """def match(images, texts):
    batch = processor([image.convert("RGB") for image in images], return_tensors="pt")
    with torch.no_grad():
        seen = normalize(towers.get_image_features(**batch).pooler_output, dim=-1)
        said = normalize(towers.get_text_features(**read(texts)).pooler_output, dim=-1)
    return (seen @ said.T * towers.logit_scale.exp()).softmax(-1)


print(match([Image.new("RGB", (64, 64))], ["a thing", "a photo of a thing"]))
"""
