"""The picture of what federating gained, and the sentences that end the demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from test_cli_help import call
from trifed.config.run import make_config, to_toml
from trifed.experiments import demo
from trifed.federation.compression import Compression, Quantise
from trifed.federation.messages import Header
from trifed.reports.comparison.gain import at_one_bit, closing_sentences, gain_figure
from trifed.reports.comparison.worth import Worth, worth_of_sharing
from trifed.reports.results import MethodResult, Partition, Traffic

ALONE, SHARED = [0.5, 0.75, 0.6], [0.8, 0.7, 0.9]


def method(accuracy: list[float], sent: float) -> MethodResult:
    mean = sum(accuracy) / len(accuracy)
    return MethodResult(mean=mean, client_accuracy=accuracy, bytes=Traffic(up_per_round=sent, total=6 * sent))


@pytest.fixture
def partition() -> Partition:
    methods = {"own-prior": method(SHARED, 2500), "alone": method(ALONE, 0), "fedavg-lora": method(ALONE, 313_600)}
    return Partition(clients=["berlin", "oslo", "paris"], methods=methods)


@pytest.fixture
def worth(partition: Partition) -> Worth:
    found = worth_of_sharing(partition)
    assert found is not None
    return found


def test_the_picture_has_two_bars_a_site_and_the_bytes(partition: Partition, worth: Worth) -> None:
    sites, sent = gain_figure(partition, worth).axes
    alone, federated = ([bar.get_width() for bar in bars] for bars in sites.containers)
    # The largest gain on top: berlin and paris gain 30 points, oslo loses 5.
    assert alone == [100 * value for value in (0.5, 0.6, 0.75)] and federated == pytest.approx([80, 90, 70])
    assert [label.get_text() for label in sites.get_yticklabels()] == ["berlin", "paris", "oslo"]
    assert [bar.get_height() for bar in sent.patches] == [2500, at_one_bit(313_600), 313_600]


@pytest.mark.parametrize("shape", [(64, 100), (3, 1000), (7,)])
def test_the_bytes_with_one_bit_are_those_of_a_message_with_one_bit(shape: tuple[int, ...]) -> None:
    header, zeros = Header("upload", "0" * 12, "0" * 16, 3, 2, 57), np.zeros(int(np.prod(shape)), np.float32)
    full, short = (
        len(compression.encode(header, zeros, zeros))
        for compression in (Compression((("A", shape),)), Quantise((("A", shape),), 1))
    )
    assert at_one_bit(full) == pytest.approx(short, abs=16)  # the header's counts have fewer digits


@pytest.mark.parametrize(("kind", "told"), [("gain", "18.3 points"), ("loss", "lost 18.3"), ("unclear", "+18.3")])
def test_three_sentences_say_what_was_gained_what_left_and_what_is_next(
    worth: Worth, kind: Any, told: str
) -> None:
    gained, left, following = closing_sentences(replace(worth, kind=kind), Path("runs/my demo"))
    assert told in gained and "2 of 3 sites" in gained
    assert "2.5 KB" in left and "trifed audit 'runs/my demo'" in left
    assert "trifed run --data" in following


@pytest.mark.parametrize(("changes", "explained"), [({}, True), ({"name": "demo-2"}, True), ({"seed": 1}, False)])
def test_a_demo_that_is_resumed_ends_as_the_demo_does(
    changes: dict[str, Any], explained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr("trifed.cli.app.carry_out", lambda *args, explain: heard.append((args[1:], explain)))
    config = demo.demo_config(2).model_copy(update=changes)
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    found = call(capsys, monkeypatch, "run", "--resume", tmp_path, "--rounds", 3)
    assert found.code == 0, found.err
    assert heard == [((tmp_path, {"from_round": None, "rounds": 3}), explained)]


@pytest.mark.slow
@pytest.mark.draws
def test_the_demo_ends_with_the_picture_and_three_sentences(
    toy_values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = make_config(toy_values(rounds=1, baselines=["alone"]))
    monkeypatch.setattr(demo, "demo_config", lambda rounds: small)
    found = call(capsys, monkeypatch, "demo", "--runs", tmp_path)
    assert found.code == 0, found.err
    with Image.open(tmp_path / "demo" / "gain.png") as picture:
        assert picture.width == 1400
    *_, gained, left, following = found.out.splitlines()
    assert gained.endswith("are better off.") and "trifed audit" in left and "trifed run --data" in following
