"""The script that makes a model folder of a llama2.c checkpoint, on the smallest of the TinyStories models."""

from __future__ import annotations

import struct
import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "benchmarks" / "models" / "llama2c.py"
STORIES = REPOSITORY.parent / "shared" / "models" / "stories260K"

PROMPT = "Once upon a time, there was a little girl named"
CONTINUED = (
    " Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, "
    "but it was too high.\nLily's mom said, \"Lily, let's go to the"
)
STORY = (
    "Once upon a time, there was a little boy named Tim. Tim had a red ball. He liked to play with his ball in "
    "the park. One day, Tim saw a big dog. The dog wanted to play too. Tim threw the ball and the dog ran to get "
    'it. They played all day and had a lot of fun. Tim was very happy. He said to his mom, "I have a new friend!" '
    "His mom smiled and gave him a big hug."
)
TEXTS = [
    "",
    "a",
    " one space before, two  within, one after ",
    "\n\nTwo lines,\n\tand a tab.\r\n",
    "Naïve café – “quotes” … 漢字 🦙 €5 ™ \u200b\u200a\u00a0",
    "12345 67890, 3.14159 and -1,000",
    "aaaaaaa aaa ttttt",
    "<0x0A> is no byte, <unk no token",
    PROMPT,
    STORY,
]

TINY = (8, 12, 2, 2, 1, 265, 16)
"""The header of a made-up checkpoint: 2 layers, 2 heads of 4 entries, which share one of k and v."""
TINY_TOKENS = [
    "<unk>",
    "\n<s>\n",
    "\n</s>\n",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    *"ab ",
    " a",
    "ab",
    " ab",
]


@pytest.fixture(scope="module")
def llama2c() -> ModuleType:
    """The script as a module."""
    spec = spec_from_file_location("llama2c", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["llama2c"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stories() -> Path:
    """The folder of the real checkpoint; skip where there is none."""
    if not STORIES.is_dir():
        pytest.skip(f"no llama2.c checkpoint: {STORIES} is absent")
    return STORIES


@pytest.fixture(scope="module")
def converted(llama2c: ModuleType, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = llama2c.convert(stories, tmp_path_factory.mktemp("converted") / "stories" / "model")
    return folder


@pytest.fixture(scope="module")
def tokenizer(converted: Path) -> Any:
    return AutoTokenizer.from_pretrained(converted)


@pytest.fixture(scope="module")
def model(converted: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(converted).eval()


def read_tokens(path: Path) -> tuple[list[bytes], list[float]]:
    """Texts and scores of the tokens in a llama2.c tokenizer file."""
    data, place = path.read_bytes(), 4
    texts, scores = [], []
    while place < len(data):
        score, length = struct.unpack_from("<fi", data, place)
        texts.append(data[place + 8 : place + 8 + length])
        scores.append(score)
        place += 8 + length
    return texts, scores


def greedy(text: str, texts: list[bytes], scores: list[float]) -> list[int]:
    """Tokens of a text as llama2.c finds them: characters or bytes, then the best merge while there is one."""
    ids = {token: place for place, token in enumerate(texts)}
    found = [1, ids[b" "]] if text else [1]
    for letter in text:
        code = letter.encode()
        found += [ids[code]] if code in ids else [byte + 3 for byte in code]
    while True:
        pairs = [ids.get(texts[one] + texts[two]) for one, two in pairwise(found)]
        options = [(-scores[merged], place, merged) for place, merged in enumerate(pairs) if merged is not None]
        if not options:
            return found
        _, place, merged = min(options)
        found[place : place + 2] = [merged]


def loss_on(model: Any, ids: torch.Tensor) -> float:
    """Mean loss of the next token, in nats. `ids`: (1, tokens)."""
    with torch.inference_mode():
        return float(model(ids, labels=ids).loss)


def write_tiny(folder: Path, header: tuple[int, ...] = TINY, tokens: list[str] = TINY_TOKENS) -> np.ndarray:
    """A checkpoint and a tokenizer; returns the numbers after the checkpoint's header, 0, 1, 2 and so on."""
    width, hidden, layers, heads, kv_heads, vocabulary, length = header
    size, kv = abs(vocabulary), width // heads * kv_heads
    layer = 2 * width + 2 * width * width + 2 * kv * width + 3 * hidden * width
    count = size * width * (1 if vocabulary > 0 else 2) + layers * layer + width + length * (width // heads)
    numbers = np.arange(count, dtype="<f4")
    folder.mkdir()
    (folder / "tiny.bin").write_bytes(struct.pack("<7i", *header) + numbers.tobytes())
    codes = [token.encode() for token in tokens]
    entries = [struct.pack("<fi", -float(place), len(code)) + code for place, code in enumerate(codes)]
    (folder / "tok.bin").write_bytes(struct.pack("<i", max(map(len, codes))) + b"".join(entries))
    return numbers


def test_texts_come_back_as_they_were(tokenizer: Any) -> None:
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokens_are_those_of_the_greedy_encoder(tokenizer: Any, stories: Path, real_data: Path) -> None:
    texts, scores = read_tokens(stories / "tok512.bin")
    rows = parquet.read_table(real_data / "shakespeare" / "train.parquet")["text"].to_pylist()[:300]
    wrong = [text for text in TEXTS + rows if tokenizer(text)["input_ids"] != greedy(text, texts, scores)]
    assert wrong == []


def test_the_folder_says_what_the_header_says(converted: Path, tokenizer: Any, model: Any) -> None:
    assert not list(converted.glob("*.bin")) and (converted / "model.safetensors").is_file()
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert tokenizer.pad_token is None and model.config.pad_token_id is None
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 512
    assert len(tokenizer) == model.config.vocab_size == 512
    assert model.dtype == torch.float32
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_the_model_tells_a_story(tokenizer: Any, model: Any) -> None:
    given = tokenizer(PROMPT, return_tensors="pt")
    told = model.generate(**given, max_new_tokens=80, do_sample=False)
    assert tokenizer.decode(told[0], skip_special_tokens=True).startswith(PROMPT + CONTINUED)


def test_the_rows_of_q_and_k_have_to_change_places(
    llama2c: ModuleType, stories: Path, tokenizer: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama2c, "by_halves", lambda weights, heads: weights)
    wrong = AutoModelForCausalLM.from_pretrained(llama2c.convert(stories, tmp_path / "wrong")).eval()
    ids = tokenizer(STORY, return_tensors="pt")["input_ids"]
    loss = loss_on(model, ids)
    assert loss < 2.5
    assert loss < loss_on(wrong, ids) - 1


@pytest.mark.parametrize("tied", [True, False])
def test_every_number_finds_its_place(llama2c: ModuleType, tmp_path: Path, tied: bool) -> None:
    header = (*TINY[:5], TINY[5] if tied else -TINY[5], TINY[6])
    numbers = write_tiny(tmp_path / "from", header)
    model = AutoModelForCausalLM.from_pretrained(llama2c.convert(tmp_path / "from", tmp_path / "to"))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    place = 0

    def following(name: str, *sizes: int, layers: int = 0) -> None:
        nonlocal place
        for layer in range(max(1, layers)):
            expected = numbers[place : place + prod(sizes)].reshape(sizes)
            if ".q_proj" in name or ".k_proj" in name:
                expected = expected[[row + start for start in range(0, len(expected), 4) for row in (0, 2, 1, 3)]]
            assert np.array_equal(state.pop(name.format(layer)), expected), name
            place += prod(sizes)

    following("model.embed_tokens.weight", 265, 8)
    following("model.layers.{}.input_layernorm.weight", 8, layers=2)
    following("model.layers.{}.self_attn.q_proj.weight", 8, 8, layers=2)
    following("model.layers.{}.self_attn.k_proj.weight", 4, 8, layers=2)
    following("model.layers.{}.self_attn.v_proj.weight", 4, 8, layers=2)
    following("model.layers.{}.self_attn.o_proj.weight", 8, 8, layers=2)
    following("model.layers.{}.post_attention_layernorm.weight", 8, layers=2)
    following("model.layers.{}.mlp.gate_proj.weight", 12, 8, layers=2)
    following("model.layers.{}.mlp.down_proj.weight", 8, 12, layers=2)
    following("model.layers.{}.mlp.up_proj.weight", 12, 8, layers=2)
    following("model.norm.weight", 8)
    place = 0 if tied else place + 16 * 4
    following("lm_head.weight", 265, 8)
    assert not state


def test_a_checkpoint_cut_short_is_named(llama2c: ModuleType, tmp_path: Path) -> None:
    write_tiny(tmp_path / "from")
    path = tmp_path / "from" / "tiny.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=rf"tiny\.bin: .*1000 bytes, .*{len(whole)} "):
        llama2c.convert(tmp_path / "from", tmp_path / "to")
    path.write_bytes(whole[:10])
    with pytest.raises(ValueError, match=r"tiny\.bin: .*\b10\b.*\b28\b"):
        llama2c.convert(tmp_path / "from", tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    "header", [(8, 12, 2, 0, 1, 265, 16), (8, 12, 2, 3, 1, 265, 16), (8, 12, 2, 4, 3, 265, 16)]
)
def test_a_header_that_cannot_be_is_shown(llama2c: ModuleType, tmp_path: Path, header: tuple[int, ...]) -> None:
    write_tiny(tmp_path / "from")
    (tmp_path / "from" / "tiny.bin").write_bytes(struct.pack("<7i", *header))
    with pytest.raises(ValueError, match=rf"tiny\.bin: .*{', '.join(map(str, header))}, "):
        llama2c.convert(tmp_path / "from", tmp_path / "to")


def test_a_tokenizer_that_does_not_fit_is_named(llama2c: ModuleType, tmp_path: Path) -> None:
    write_tiny(tmp_path / "fewer", tokens=TINY_TOKENS[:-1])
    with pytest.raises(ValueError, match=r"tok\.bin: .*264 tokens, .*265"):
        llama2c.convert(tmp_path / "fewer", tmp_path / "to")
    write_tiny(tmp_path / "twice", tokens=[*TINY_TOKENS[:-1], "a"])
    with pytest.raises(ValueError, match=r"tok\.bin: .*1 .*twice.*265"):
        llama2c.convert(tmp_path / "twice", tmp_path / "to")
    write_tiny(tmp_path / "other", tokens=[*TINY_TOKENS[:3], "the", *TINY_TOKENS[4:]])
    with pytest.raises(ValueError, match=r"tok\.bin: .*'the'.* 3, .*<0x00>"):
        llama2c.convert(tmp_path / "other", tmp_path / "to")
    write_tiny(tmp_path / "short")
    path = tmp_path / "short" / "tok.bin"
    whole = path.read_bytes()
    for cut in (1, 5):
        path.write_bytes(whole[:-cut])
        with pytest.raises(ValueError, match=rf"tok\.bin: .*{len(whole) - cut} bytes, .* 264"):
            llama2c.convert(tmp_path / "short", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_the_command_converts_or_says_what_is_wrong(
    llama2c: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, to = tmp_path / "from", tmp_path / "to"
    write_tiny(source)
    monkeypatch.setattr(sys, "argv", ["llama2c.py", str(source), str(to)])
    llama2c.main()
    assert capsys.readouterr().out == f"{to}\n"
    assert AutoTokenizer.from_pretrained(to)("ab").input_ids == [1, 264]
    (source / "tok.bin").unlink()
    with pytest.raises(SystemExit, match=r"from: .*tiny\.bin.*checkpoint.*tokenizer"):
        llama2c.main()
