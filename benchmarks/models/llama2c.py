"""Converts a llama2.c checkpoint and its tokenizer into a model folder for transformers.

    python benchmarks/models/llama2c.py FOLDER TO

FOLDER holds one checkpoint and one tokenizer, such as stories260K.bin and tok512.bin: the tokenizer is what is
called `tok*.bin`, the checkpoint the other `.bin`. TO becomes a folder that `AutoModelForCausalLM.from_pretrained`
and `AutoTokenizer.from_pretrained` load without a network: a Llama in float32, as safetensors, and a fast
tokenizer without a padding token.

Two things differ between the formats. llama2.c turns neighbouring entries of a head by one angle, transformers an
entry of a head's first half and its fellow in the second, so the rows of q and k change places. And llama2.c
merges tokens by score, transformers by a list of merges, so the list is made from the scores.
"""

from __future__ import annotations

import argparse
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Array = NDArray[np.float32]
SPACE = "▁"
UNKNOWN, BEGIN, END = SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
HEADER = struct.Struct("<7i")
LONGEST = struct.Struct("<i")
ENTRY = struct.Struct("<fi")
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
"""From llama2.c's names to those of transformers, for what each layer has one of."""


@dataclass(frozen=True)
class Shape:
    """The header of a checkpoint. `vocabulary` is positive; `tied`: the output layer is the embeddings."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int
    tied: bool

    @property
    def head(self) -> int:
        """Entries of one head."""
        return self.width // self.heads

    def sections(self) -> dict[str, tuple[int, ...]]:
        """What follows the header, in the order of the file."""
        layers, width, hidden, kv = self.layers, self.width, self.hidden, self.kv_heads * self.head
        found: dict[str, tuple[int, ...]] = {
            "embeddings": (self.vocabulary, width),
            "attention_norm": (layers, width),
            "wq": (layers, width, width),
            "wk": (layers, kv, width),
            "wv": (layers, kv, width),
            "wo": (layers, width, width),
            "ffn_norm": (layers, width),
            "w1": (layers, hidden, width),
            "w2": (layers, width, hidden),
            "w3": (layers, hidden, width),
            "final_norm": (width,),
            "rope_cosines": (self.length, self.head // 2),
            "rope_sines": (self.length, self.head // 2),
        }
        if not self.tied:
            found["output"] = (self.vocabulary, width)
        return found


def find_files(folder: Path) -> tuple[Path, Path]:
    """The checkpoint and the tokenizer in a folder."""
    found = sorted(folder.glob("*.bin"))
    tokenizers = [path for path in found if path.name.startswith("tok")]
    checkpoints = [path for path in found if path not in tokenizers]
    if len(checkpoints) != 1 or len(tokenizers) != 1:
        names = ", ".join(path.name for path in found) or "no .bin"
        raise ValueError(f"{folder}: got {names}, expected one checkpoint (*.bin) and one tokenizer (tok*.bin)")
    return checkpoints[0], tokenizers[0]


def read_shape(path: Path) -> Shape:
    """The checkpoint's header, if it can be one."""
    with path.open("rb") as file:
        start = file.read(HEADER.size)
    if len(start) < HEADER.size:
        raise ValueError(f"{path}: got {len(start)} bytes, expected at least the {HEADER.size} of the header")
    numbers = HEADER.unpack(start)
    width, hidden, layers, heads, kv_heads, vocabulary, length = numbers
    shape = Shape(width, hidden, layers, heads, kv_heads, abs(vocabulary), length, tied=vocabulary > 0)
    possible = min(width, hidden, layers, heads, kv_heads, abs(vocabulary), length) > 0
    if not possible or width % (2 * heads) or heads % kv_heads:
        raise ValueError(
            f"{path}: got a header of {', '.join(map(str, numbers))}, expected llama2.c's width, hidden width, "
            "layers, heads, kv heads, vocabulary and length, with heads of an even width"
        )
    return shape


def read_sections(path: Path, shape: Shape) -> dict[str, Array]:
    """The checkpoint's arrays by llama2.c's names; see `Shape.sections` for theirs."""
    sections = shape.sections()
    expected = HEADER.size + 4 * sum(prod(sizes) for sizes in sections.values())
    got = path.stat().st_size
    if got != expected:
        raise ValueError(f"{path}: got {got} bytes, expected {expected} for {shape}")
    numbers = np.fromfile(path, dtype="<f4", offset=HEADER.size).astype(np.float32, copy=False)
    ends = np.cumsum([prod(sizes) for sizes in sections.values()])
    parts = np.split(numbers, ends[:-1])
    return {name: part.reshape(sizes) for (name, sizes), part in zip(sections.items(), parts, strict=True)}


def by_halves(weights: Array, heads: int) -> Array:
    """Rows of q or k, (heads * head, width), with each head's even rows before its odd ones."""
    rows, width = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def state_of(sections: dict[str, Array], shape: Shape) -> dict[str, torch.Tensor]:
    """The arrays by the names that transformers has for them, q and k rearranged, layers apart."""
    heads = {"wq": shape.heads, "wk": shape.kv_heads}
    found = {
        "model.embed_tokens.weight": sections["embeddings"],
        "model.norm.weight": sections["final_norm"],
        "lm_head.weight": sections.get("output", sections["embeddings"]),
    }
    for name, theirs in LAYER_NAMES.items():
        for layer, weights in enumerate(sections[name]):
            ordered = by_halves(weights, heads[name]) if name in heads else weights
            found[f"model.layers.{layer}.{theirs}.weight"] = ordered
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}


def make_model(path: Path, shape: Shape) -> LlamaForCausalLM:
    """The checkpoint as a Llama in float32."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=shape.length,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=shape.tied,
            bos_token_id=SPECIAL.index(BEGIN),
            eos_token_id=SPECIAL.index(END),
            pad_token_id=None,
            dtype="float32",
        )
    )
    model.load_state_dict(state_of(read_sections(path, shape), shape))
    return model


def read_vocabulary(path: Path, size: int) -> dict[str, float]:
    """The score of each token, in the order of their ids, with the names and the space that SentencePiece has."""
    entries = _entries(path)
    if len(entries) != size:
        raise ValueError(f"{path}: got {len(entries)} tokens, expected {size} as in the checkpoint")
    names = [*SPECIAL, *BYTES]
    for place, (text, _) in enumerate(entries[len(SPECIAL) : len(names)], len(SPECIAL)):
        if text != names[place]:
            raise ValueError(f"{path}: got {text!r} as token {place}, expected {names[place]}")
    if size < len(names):
        raise ValueError(f"{path}: got {size} tokens, expected at least the {len(names)} special ones and bytes")
    names += [text.replace(" ", SPACE) for text, _ in entries[len(names) :]]
    found = {name: score for name, (_, score) in zip(names, entries, strict=True)}
    if len(found) != size:
        raise ValueError(f"{path}: got {size - len(found)} tokens twice, expected {size} different ones")
    return found


def _entries(path: Path) -> list[tuple[str, float]]:
    """The tokens of the file, (text, score) each. The file begins with the length of the longest."""
    data, place = path.read_bytes(), LONGEST.size
    found: list[tuple[str, float]] = []
    while place < len(data):
        start = place + ENTRY.size
        score, length = ENTRY.unpack_from(data, place) if start <= len(data) else (0.0, 0)
        place = start + length
        if length < 0 or place > len(data):
            raise ValueError(f"{path}: got {len(data)} bytes, expected {place} or more, to end token {len(found)}")
        try:
            found.append((data[start:place].decode(), score))
        except UnicodeDecodeError:
            raise ValueError(f"{path}: got {data[start:place]!r} as token {len(found)}, expected UTF-8") from None
    return found


def merges_of(vocabulary: dict[str, float]) -> list[tuple[str, str]]:
    """Every split of a token into two others, the splits of the token with the best score first.

    Special tokens and bytes take no part: they are names of what they stand for, not its text.
    """
    words = dict(list(vocabulary.items())[len(SPECIAL) + len(BYTES) :])
    return [
        (word[:cut], word[cut:])
        for word in sorted(words, key=lambda word: -words[word])
        for cut in range(1, len(word))
        if word[:cut] in words and word[cut:] in words
    ]


def make_tokenizer(vocabulary: dict[str, float], length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space and a beginning before a text. `length`: tokens that the model can take."""
    ids = {token: place for place, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(ids, merges_of(vocabulary), unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN}:1 $B:1", special_tokens=[(BEGIN, ids[BEGIN])]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def convert(source: Path, to: Path) -> Path:
    """Writes the folder `to` from the two files of `source` and returns it.

    Where one of the files is not what it should be: ValueError, before anything is written.
    """
    checkpoint, words = find_files(source)
    shape = read_shape(checkpoint)
    model = make_model(checkpoint, shape)
    tokenizer = make_tokenizer(read_vocabulary(words, shape.vocabulary), shape.length)
    to.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="FOLDER", type=Path, help="folder of the checkpoint and the tokenizer")
    parser.add_argument("to", metavar="TO", type=Path, help="folder to write")
    given = parser.parse_args()
    try:
        print(convert(given.source, given.to))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
