"""Code that a model's folder brings is neither run nor offered to be run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig

from trifed.common.errors import ModelError
from trifed.tasks.base_model import read_config
from trifed.tasks.shapes import build_on_meta
from trifed.tasks.text_classification import load_encoder

CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


class Evil(BertConfig):
    pass


class EvilModel(BertModel):
    pass


class EvilTokenizer(PreTrainedTokenizerFast):
    pass


Path({ran!r}).touch()
"""
"""Classes of its own: transformers marks those that it loads, for the rest of the process."""
CONFIG = {"AutoConfig": "evil.Evil", "AutoModel": "evil.EvilModel"}
TOKENIZER = {"AutoTokenizer": [None, "evil.EvilTokenizer"]}


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that the code writes when it is run."""
    return tmp_path / "ran"


@pytest.fixture
def malicious(tiny_encoder: Path, tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder with code; whoever is asked whether to run it says yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "model"))
    for name in ("evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(CODE.format(ran=str(ran)), encoding="utf-8")
    return folder


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values), encoding="utf-8")


def test_the_code_would_run_if_it_were_trusted(malicious, ran):
    change(malicious / "config.json", model_type="evil", auto_map=CONFIG)
    AutoConfig.from_pretrained(malicious, trust_remote_code=True)
    assert ran.exists()


def test_an_architecture_of_the_folders_own_is_refused(malicious, ran):
    change(malicious / "config.json", model_type="evil", auto_map=CONFIG)
    with pytest.raises(ModelError, match="auto_map"):
        read_config(str(malicious))
    with pytest.raises(ModelError, match="auto_map"):
        load_encoder(str(malicious))
    assert not ran.exists()


def test_a_tokenizer_of_the_folders_own_is_refused(malicious, ran):
    (malicious / "tokenizer.json").unlink()
    change(malicious / "config.json", model_type="bert")
    change(malicious / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=TOKENIZER)
    with pytest.raises(ModelError):
        load_encoder(str(malicious))
    assert not ran.exists()


def test_an_architecture_that_transformers_has_is_loaded_without_the_folders_code(malicious, ran):
    """Many public models carry code from the time before transformers had their architecture."""
    change(malicious / "config.json", auto_map=CONFIG)
    change(malicious / "tokenizer_config.json", auto_map=TOKENIZER)
    model = load_encoder(str(malicious)).model
    assert type(model).__module__.startswith("transformers.")
    _, config = read_config(str(malicious))
    build_on_meta(config, whole_lm=False)
    assert not ran.exists()


def test_pickled_weights_are_refused_with_the_way_out(malicious, ran):
    (malicious / "model.safetensors").rename(malicious / "pytorch_model.bin")
    with pytest.raises(ModelError, match="save_pretrained"):
        load_encoder(str(malicious))
    assert not ran.exists()
