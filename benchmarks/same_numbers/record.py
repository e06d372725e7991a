"""Record the numbers of many tiny runs, so that a rebuilt version can be compared bit for bit.

    python benchmarks/same_numbers/record.py OUT.json [--only GLOB ...] [--jobs N] [--list]
    python benchmarks/same_numbers/compare.py BEFORE.json AFTER.json

Every method runs for three rounds on a random two-layer BERT and three sites of the demo corpus: with 32 bits and
with 1 bit a number, without and with `[privacy]`, in the simulator and between sites in one process, uninterrupted
and stopped after round 2 and resumed. A few cases are of other settings and tasks, one is an audit. Recorded are
the event log, a hash of every message, of every tensor file in the run's folder and in the sites' folders, the
ledgers, and the result. Left out are seconds and random names.

The two JSON files have to come from one machine with the same packages: another processor rounds differently.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import atexit
import csv
import hashlib
import json
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache, partial
from importlib import import_module
from io import BytesIO, StringIO
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import safetensors.numpy
import torch
from safetensors import safe_open

Json = dict[str, Any]

ROUNDS, LAST_BEFORE_STOP = 3, 2
SITES = ("clinic", "energy", "transit")
ROWS_A_SITE = 40
COMMON_WORDS = 180
GUARDS = {"few_tokens": "allow", "small_components": "allow"}
"""The data are too small for the guards, which change no number."""

SUMMARY, UPDATE = {"summary": {"epsilon": 20.0}}, {"update": {"epsilon": 200.0}}
TRAINING = {"training": {"epsilon": 200.0, "rate": 0.1}}
PRIVACY: dict[str, Json] = {"none": {}, "updates": SUMMARY | UPDATE, "steps": SUMMARY | UPDATE | TRAINING}


# -- what is hooked


class Recorder:
    """Hashes of all messages that are encoded, and one seeded source of secrets for each participant.

    A message is one call of `safetensors.numpy.save`. Messages are sorted and listed once, so that neither the
    order in which clients are asked nor a message that is encoded again makes a difference.
    """

    def __init__(self) -> None:
        self.installed = False
        self.reset()

    def install(self) -> None:
        """Put the hooks in place, once in a process; trifed must not be imported yet."""
        if self.installed:
            return
        if "trifed" in sys.modules:
            raise RuntimeError("trifed is imported already, and what it took from safetensors cannot be recorded")
        self.installed = True
        save = safetensors.numpy.save

        def recorded(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
            facts = metadata or {}
            about = [str(facts.get(name, "?")) for name in ("round", "kind", "client", "examples")]
            self.messages.add(" ".join([*about, hash_of(tensors)]))
            return save(tensors, metadata)

        safetensors.numpy.save = recorded
        secrets.token_bytes = self._bytes
        secrets.token_hex = lambda n=32: self._source("names").bytes(n).hex()

    def reset(self) -> None:
        self.messages: set[str] = set()
        self.sources: dict[str, np.random.Generator] = {}
        self.participant = "server"

    @contextmanager
    def acting(self, participant: str) -> Iterator[None]:
        """Secrets that are drawn inside belong to this participant."""
        self.participant, before = participant, self.participant
        yield
        self.participant = before

    def _bytes(self, n: int = 32) -> bytes:
        return self._source("noise").bytes(n)

    def _source(self, purpose: str) -> np.random.Generator:
        name = f"{self.participant} {purpose}"
        if name not in self.sources:
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
            self.sources[name] = np.random.default_rng(seed)
        return self.sources[name]


def hash_of(arrays: Mapping[str, Any]) -> str:
    """Sixteen hex digits over names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


RECORDER = Recorder()


# -- what of trifed is used: all internal names are in this function, in `InProcess` and in `lead`


def first(*places: str) -> Any:
    """The first of `module:name` that this version has."""
    for place in places:
        module, _, name = place.partition(":")
        with suppress(ImportError, AttributeError):
            return getattr(import_module(module), name)
    raise ImportError(f"this version has none of {', '.join(places)}; name its place in record.py")


def internals() -> SimpleNamespace:
    """The parts that have no public name, wherever this version or an earlier one keeps them."""
    import trifed

    [corpus] = Path(trifed.__file__).parent.rglob("support.jsonl")
    return SimpleNamespace(
        corpus=corpus,
        to_toml=first("trifed.config.run:to_toml", "trifed.config:to_toml"),
        RunFolder=first("trifed.federation.run_folder:RunFolder", "trifed.federation.store:RunFolder"),
        Coordinator=first(
            "trifed.deployment.site_transport:SiteTransport",
            "trifed.deployment.coordinator:Coordinator",
            "trifed.sites.coordinator:Coordinator",
        ),
        SiteProcess=first("trifed.deployment.site_process:SiteProcess", "trifed.sites.node:Node"),
        SiteSettings=first(
            "trifed.deployment.site_settings:SiteSettings", "trifed.sites.node_settings:NodeSettings"
        ),
    )


class InProcess:
    """A channel to sites in this process. `after`: called with a request once a site has answered it."""

    def __init__(self, nodes: dict[int, Any], after: Callable[[Any, str], None]) -> None:
        self.members = nodes
        self.after = after

    def nodes(self) -> set[int]:
        return set(self.members)

    def ask(self, requests: Mapping[int, Any], seconds: float, missing: Any = None) -> dict[int, Any]:
        replies = {}
        for number, request in requests.items():
            name = self.members[number].settings.name
            with RECORDER.acting(name):
                replies[number] = self.members[number].answer(request)
            self.after(request, name)
        return replies


def lead(values: Json, changes: bool, listener: Callable[[Json], None], root: Path = Path()) -> None:
    """Begin or continue a run in ROOT/server over sites whose folders lie in ROOT/sites."""
    from trifed import make_config

    use = internals()

    def site(name: str, source: str) -> Any:
        settings = {"name": name, "data": {"source": source}, "folder": root / "sites" / name}
        settings |= {"gradients": True} if "gradients" in use.SiteSettings.model_fields else {}
        return use.SiteProcess(use.SiteSettings(**settings, privacy=GUARDS, tell_scores=True))

    # Numbers of nodes run against the order of the names, as Flower's do not follow them either.
    nodes = {10 - place: site(name, f"{name}.csv") for place, name in enumerate(SITES)}
    channel = InProcess(nodes, lambda request, name: None)
    if changes:
        channel.after = changing(channel, site)
    path, config = root / "server", make_config(values)
    if path.exists():
        folder = use.RunFolder.open(path)
    else:
        folder = use.RunFolder.create(path)
        folder.write_text("config.toml", use.to_toml(config))
    use.Coordinator(config, channel, folder, listener, sleep=lambda seconds: None).run()


def changing(channel: InProcess, site: Callable[[str, str], Any]) -> Callable[[Any, str], None]:
    """One site comes late, in round 2; the data of another change; a third leaves after round 3."""
    done: set[int] = set()

    def after(request: Any, name: str) -> None:
        number = request.facts.get("round", 0)
        if request.kind != "train" or number in done:
            return
        done.add(number)
        if number == 1:
            channel.members[20] = site("university", "university.csv")
        if number == 2:
            rows = Path(f"{SITES[1]}.csv").read_text(encoding="utf-8").splitlines(keepends=True)
            Path(f"{SITES[1]}.csv").write_text("".join(rows[:-7]), encoding="utf-8")
        if number == 3:
            Path("server/leaving.json").write_text(json.dumps([SITES[2]]), encoding="utf-8")

    return after


# -- cases


@dataclass(frozen=True)
class Case:
    """One run. `changes`: settings over those that all cases have; `changing`: sites come, change and leave;
    `audited`: the settings are attacked by `trifed audit` instead of a run.
    """

    name: str
    sites: bool = False
    stop: bool = False
    changing: bool = False
    audited: bool = False
    changes: Json = field(default_factory=dict)


def cases() -> dict[str, Case]:
    """By name: ENGINE/METHOD/BITS/PRIVACY/whole or resumed; and some that have one more setting changed."""
    from trifed.methods import METHODS

    found = []
    for engine in ("simulated", "sites"):
        for method in METHODS:
            for bits in (32, 1):
                for privacy, noise in PRIVACY.items():
                    for ending in ("whole", "resumed"):
                        found.append(
                            Case(
                                f"{engine}/{method}/{bits}/{privacy}/{ending}",
                                sites=engine == "sites",
                                stop=ending == "resumed",
                                changes={"method": method, "wire": {"bits": bits}, "privacy": noise},
                            )
                        )
        found += more(engine)
    found += other_tasks()
    return {case.name: case for case in found}


def more(engine: str) -> Iterator[Case]:
    """Settings that the grid leaves where they are."""
    sites = engine == "sites"
    schedule = {"schedule": "linear", "warmup": 0.2, "optimizer_state": "reset", "weight_decay": 0.1}
    varied: dict[str, Json] = {
        "half": {"method": "own-prior", "participation": 0.5},
        "half-mean": {"method": "fedavg-lora", "participation": 0.5, "wire": {"bits": 4}},
        "schedule": {"method": "ce-lora", "training": schedule},
        "epochs": {"method": "fedsa-lora", "training": {"steps": None, "epochs": 2, "micro_batch": 3}},
        "dropout": {"method": "fed-xs", "adapter": {"dropout": 0.2}, "training": {"clip_norm": 0.1}},
        "cls": {"method": "own-prior-lora", "model": {"pooling": "cls"}, "wire": {"bits": 2}},
        "one-seed-on": {"method": "pfedme-lora", "seed": 1, "wire": {"bits": 8}},
        "updates-alone": {"method": "fedavg-tri", "privacy": UPDATE},
        "steps-alone": {"method": "ffa-lora", "privacy": TRAINING},
        "summary-alone": {"method": "ce-lora", "privacy": SUMMARY},
        "empty-client": {
            "method": "own-prior",
            "data": {"allow_empty_clients": True, "clients": {"min_examples": ROWS_A_SITE - 2}},
        },
    }
    if sites:
        del varied["empty-client"]
        for method in ("own-prior", "ce-lora", "fed-sb", "fedavg-lora", "local"):
            changes = {"method": method, "rounds": 4}
            yield Case(f"sites/{method}/changing", sites=True, changing=True, changes=changes)
    else:
        # Classical baselines beside the result, other methods on the same split, one separate test set.
        varied["controls"] = {"method": "own-prior", "controls": True, "baselines": ["ce-lora", "local"]}
        varied["global-test"] = {"method": "fedavg-lora", "data": {"test": "university.csv"}}
        varied["every-second"] = {"method": "ce-lora", "evaluate_every": 2}
    for name, changes in varied.items():
        yield Case(f"{engine}/{changes['method']}/{name}", sites=sites, changes=changes)


def other_tasks() -> Iterator[Case]:
    """A language model and an image classifier, and an audit of a text classifier."""
    tasks: dict[str, Json] = {
        "causal-lm": {
            "model": {"name": "language", "max_length": 64},
            "data": {"prompt": "text", "answer": "label", "labels": None},
        },
        "image-classification": {
            "model": {"name": "vision", "max_length": None},
            "data": {"source": "images.parquet", "labels": None},
        },
    }
    for task, changes in tasks.items():
        for method in ("own-prior", "ce-lora"):
            for privacy in ("none", "steps"):
                more = {"task": task, "method": method, "privacy": PRIVACY[privacy]}
                if task == "causal-lm" and privacy != "none":
                    more["model"] = {"packing": False}
                yield Case(f"tasks/{task}/{method}/{privacy}", changes=merged(changes, more, keep=True))
    yield Case("audit/own-prior", audited=True, changes={"method": "own-prior", "rounds": 1})


def merged(values: Json, changes: Mapping[str, Any], keep: bool = False) -> Json:
    """`values` with nested `changes` over them; None removes a setting, unless it is kept for a later merge."""
    result = dict(values)
    for name, change in changes.items():
        inner = result.get(name)
        both = isinstance(inner, dict) and isinstance(change, dict)
        result[name] = merged(inner, change, keep) if both else change
    return {name: value for name, value in result.items() if keep or value is not None}


def values_of(case: Case, labels: list[str]) -> Json:
    """The settings of a case; paths are relative, so that the run's identity is the same everywhere."""
    split = {"split": "column", "column": "site", "min_examples": 5}
    values: Json = {
        "name": "tiny",
        "rounds": ROUNDS,
        "controls": False, "baselines": [],
        "model": {"name": "base", "max_length": 24},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"source": "table.csv", "labels": labels, "clients": split},
        "training": {
            "steps": 2, "batch_size": 4, "eval_batch_size": 16, "learning_rate": 1e-2, "precision": "fp32",
            "device": "cpu",
        },
        "privacy": GUARDS,
        "deployment": {"clients": len(SITES), "join_seconds": 2, "quorum": 2},
    }  # fmt: skip
    return merged(values, case.changes)


# -- model and data


def write_table(folder: Path) -> list[str]:
    """`table.csv` of three sites, one file for each of them, and one of a fourth; the labels, sorted."""
    with internals().corpus.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    kept = {site: [row for row in rows if row["site"] == site][:ROWS_A_SITE] for site in (*SITES, "university")}
    everything = [row for site in SITES for row in kept[site]]
    for name, part in {"table": everything, **kept}.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "label", "site"])
            writer.writeheader()
            writer.writerows(part)
    return sorted({row["label"] for row in [*everything, *kept["university"]]})


def write_model(folder: Path, texts: list[str]) -> None:
    """A random BERT (2 layers, hidden 32) whose tokenizer has the commonest words of the texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text))
    common = sorted(counts, key=lambda word: (-counts[word], word))[:COMMON_WORDS]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *common]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)


def write_language(folder: Path) -> None:
    """A random Llama (2 layers, hidden 32) that reads bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    config = AutoConfig.for_model(
        "llama", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
        pad_token_id=None, vocab_size=len(words),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def write_vision(folder: Path) -> None:
    """A random ViT (1 layer, hidden 32); beside it `images.parquet`, noisy images of three colors at two sites."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from transformers import AutoConfig, AutoModel, ViTImageProcessor

    config = AutoConfig.for_model(
        "vit", image_size=16, patch_size=8, num_hidden_layers=1, num_attention_heads=4, hidden_size=32,
        intermediate_size=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    rng, rows = np.random.default_rng(0), []
    for site in ("north", "south"):
        for label, color in [("amber", (200, 150, 40)), ("green", (60, 190, 70)), ("violet", (150, 60, 200))] * 8:
            pixels = rng.normal(color, 60, (20, 18, 3)).clip(0, 255).astype(np.uint8)
            file = BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": label, "site": site})
    pq.write_table(pa.Table.from_pylist(rows), folder.parent / "images.parquet")


@cache
def materials() -> tuple[Path, list[str]]:
    """A folder with model and data, made once in a process, and the labels."""
    folder = Path(tempfile.mkdtemp(prefix="same-numbers-"))
    atexit.register(shutil.rmtree, folder)
    labels = write_table(folder)
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        write_model(folder / "base", [row["text"] for row in csv.DictReader(file)])
    write_language(folder / "language")
    write_vision(folder / "vision")
    return folder, labels


# -- runs


class Stopped(Exception):  # noqa: N818 - not an error
    """Raised by the listener in the middle of round 3."""


def stop(event: Json) -> None:
    if event["event"] == "trained" and event["round"] == LAST_BEFORE_STOP + 1:
        raise Stopped


def stopped(case: Case, begin: Callable[..., Any], go_on: Callable[..., Any]) -> None:
    """Run to the end; where the case says so, from a stop in round 3."""
    if not case.stop:
        begin(lambda event: None)
        return
    try:
        begin(stop)
    except Stopped:
        go_on(lambda event: None)
    else:
        raise RuntimeError(f"{case.name}: it was never stopped")


def carry_out(case: Case) -> Json:
    """What one case gives. Settings that are refused are a result too."""
    from trifed import TrifedError, make_config, resume, run

    folder, labels = materials()
    values = values_of(case, labels)
    with tempfile.TemporaryDirectory() as scratch:
        before = Path.cwd()
        shutil.copytree(folder, scratch, dirs_exist_ok=True)
        os.chdir(scratch)
        RECORDER.reset()
        try:
            try:
                config = make_config(values)
            except TrifedError as error:
                problems = getattr(error, "problems", [str(error)])
                return {"refused": sorted(problem.partition(":")[0] for problem in problems)}
            if case.sites:
                leads = partial(lead, values, case.changing)
                stopped(case, leads, leads)
                return {**facts_of(Path("server")), "sites": facts_of(Path("sites"))}
            if case.audited:
                return audit(config)
            path = Path("runs/tiny")
            stopped(case, lambda listener: run(config, path, listener), lambda listener: resume(path, listener))
            return facts_of(path)
        finally:
            os.chdir(before)


def audit(config: Any) -> Json:
    """What `trifed audit` writes of a configuration, by the command itself."""
    import trifed.cli

    Path("audited.toml").write_text(internals().to_toml(config), encoding="utf-8")
    words = [
        "trifed",
        "audit",
        "audited.toml",
        "--batch",
        "1",
        "--trials",
        "1",
        "--rounds",
        "1",
        "--into",
        "audit",
    ]
    with patch.object(sys, "argv", words), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            trifed.cli.main()
        except SystemExit as ended:
            if ended.code:
                raise
    found = timeless(json.loads(Path("audit/audit.json").read_text(encoding="utf-8")))
    kept = ("reconstruction", "membership", "labels", "means", "round", "client")
    return {"audit.json": {name: found[name] for name in kept}, "messages": sorted(RECORDER.messages)}


# -- what is recorded


def facts_of(folder: Path) -> Json:
    """All numbers in a run's folder, or in the folder of all sites, with the messages of the case."""
    found: Json = {"tensors": dict(tensor_files(folder)), "messages": sorted(RECORDER.messages)}
    for path in sorted(folder.rglob("*.json*")):
        name, text = name_of(path, folder), path.read_text(encoding="utf-8")
        if path.name == "events.jsonl":
            found[name] = [timeless(json.loads(line)) for line in text.splitlines()]
        elif path.name == "ledger.json":
            found[name] = json.loads(text)["entries"]
        elif path.name == "environment.json":
            kept = ("base_fingerprint", "run_id", "trained_values", "sent_values")
            found[name] = {key: json.loads(text)[key] for key in kept}
        elif path.name in ("summary.json", "predictions.json", "split.json", "classifier.json"):
            found[name] = timeless(json.loads(text))
    return found


def name_of(path: Path, folder: Path) -> str:
    """A path in a folder, without the random part of a run's name."""
    return re.sub(r"\b([0-9a-f]{12})-[0-9a-f]{8}\b", "RUN", str(path.relative_to(folder)))


def tensor_files(folder: Path) -> Iterator[tuple[str, Any]]:
    """Of each safetensors file a hash over its arrays; of a checkpoint one for each part."""
    for path in sorted(folder.rglob("*.safetensors")):
        if path.name == "message.safetensors":
            continue  # a whole message as bytes, and the header of a message has no fixed order
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if path.name != "checkpoint.safetensors":
            yield name_of(path, folder), hash_of(arrays)
            continue
        parts: dict[str, Json] = {}
        for name, array in arrays.items():
            head = name.split("/")
            parts.setdefault("/".join(head[: 3 if head[0] == "client" else 2]), {})[name] = array
        yield name_of(path, folder), {part: hash_of(parts[part]) for part in sorted(parts)}


def timeless(value: Any) -> Any:
    """JSON without anything that is measured in seconds."""
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if not name.startswith("seconds")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


# -- command line


def timed(name: str) -> tuple[str, Json, float]:
    """One case by name, in whatever process."""
    RECORDER.install()
    torch.set_num_threads(1)
    began = time.perf_counter()
    return name, carry_out(cases()[name]), time.perf_counter() - began


def results(names: list[str], jobs: int) -> Iterator[tuple[str, Json, float]]:
    """Each case as it is done, `jobs` at a time."""
    if jobs == 1:
        yield from map(timed, names)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(timed, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--only", action="append", metavar="GLOB", help="cases by name; '*' also spans '/'")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and end")
    arguments = parser.parse_args()
    RECORDER.install()
    wanted = arguments.only or ["*"]
    names = [name for name in cases() if any(fnmatch(name, glob) for glob in wanted)]
    if arguments.list or not names or arguments.out is None:
        print("\n".join(names or cases()))
        raise SystemExit(0 if arguments.list else "no case is chosen, or no OUT.json is given; see --help")
    began = time.perf_counter()
    found = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        for name, facts, seconds in results(names, arguments.jobs):
            found[name] = facts
            print(f"{seconds:6.2f} s  {name}{'  (refused)' if 'refused' in facts else ''}", flush=True)
    finally:  # what there is when a case fails or somebody stops it: compare.py --part
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(found)} cases in {time.perf_counter() - began:.0f} s: {arguments.out}")


if __name__ == "__main__":
    main()
