"""A whole audit: what it writes, that it goes on, what it refuses; texts and images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trifed import make_config, run
from trifed.attacks.audit import audit
from trifed.attacks.claims import claims
from trifed.attacks.plan import Plan
from trifed.attacks.warm_up import left_off
from trifed.cli.app import main
from trifed.config.run import to_toml
from trifed.config.settings import PrivacySettings
from trifed.reports.audit.findings import Estimate, Membership, Reconstruction, read_findings


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """The exit code, and all that was printed."""

    def call(*words):
        monkeypatch.setattr("sys.argv", ["trifed", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code, told.out + told.err

    return call


PLAN = Plan(
    rounds=1,
    batches=(1, 4),
    trials=2,
    matched=1,
    iterations=3,
    clients=2,
    members=8,
    controls=("fedavg-lora",),
    announced=True,
)


@pytest.fixture
def settings(toy_values, tmp_path):
    """A file of settings; ranks are small, so that no guard has anything against a whole round."""
    path = tmp_path / "toy.toml"
    path.write_text(to_toml(make_config(toy_values(method="ce-lora", training={"epochs": 2}))))
    return path


def test_an_audit_finds_something_of_every_kind_and_goes_on_where_it_stopped(settings, tmp_path):
    heard: list[str] = []
    found = audit(settings, tmp_path / "audit", PLAN, say=heard.append)
    assert [text for text in heard if text.startswith("about ") and " minutes in all" in text]
    assert found.finished and found.method == "ce-lora" and found.controls == ["fedavg-lora"]
    rows = {(row.method, row.attack, row.sees, row.knows, row.batch) for row in found.reconstruction}
    levels = {knows for method, _, _, knows, _ in rows if method == "ce-lora"}
    assert levels == {"base", "start", "factors"}
    assert ("fedavg-lora", "span", "update", "factors", 4) in rows
    assert ("ce-lora", "matching", "gradient", "start", 1) in rows
    assert sum(row[1] == "guesser" for row in rows) == 2  # once a batch size
    assert {(row.method, row.source) for row in found.membership} == {
        ("ce-lora", "update"), ("ce-lora", "summary"), ("fedavg-lora", "update"),
    }  # fmt: skip
    assert {row.method for row in found.labels} == {"fedavg-lora"}  # ce-lora keeps its head
    assert [row.method for row in found.means] == ["ce-lora"]
    assert len(found.claims) == 3
    assert read_findings(tmp_path / "audit" / "audit.json") == found

    (tmp_path / "audit" / "parts" / "fedavg-lora.json").write_text("{ broken off")
    heard.clear()
    again = audit(settings, tmp_path / "audit", PLAN, say=heard.append)
    assert "ce-lora: from before" in heard and "fedavg-lora: warming up" in heard
    assert again.reconstruction == found.reconstruction and again.membership == found.membership


def test_a_run_is_attacked_where_it_stands_and_stays_as_it_is(finished, run_cli, tmp_path):
    done = finished("own-prior")
    before = {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()}
    arguments = ["--into", tmp_path, "--batch", "1", "--trials", "1", "--rounds", "1"]
    code, told = run_cli("audit", done.path, *arguments)
    assert code == 0, told
    found = read_findings(tmp_path / "audit.json")
    assert (found.round, found.client) == (3, "amber")
    assert "page to look at" in told
    page = (tmp_path / "audit.html").read_text()
    assert "own-prior" in page and "https://" not in page.replace("https://arxiv", "")
    assert {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()} == before


def test_a_run_with_noise_is_attacked_through_its_noise_and_spends_nothing(toy_values, tmp_path):
    """The same round is sent with and without: what noise of the size of the clip leaves is hardly like it."""
    noise = {
        "summary": {"epsilon": 2, "delta": 1e-4},
        "update": {"epsilon": 2, "delta": 1e-4, "clip": 0.1},
        "few_tokens": "allow",
    }
    done = run(make_config(toy_values(method="own-prior", privacy=noise, wire={"bits": 32})), tmp_path / "run")
    ledgers = {path: path.read_bytes() for path in (done.path / "privacy").rglob("*") if path.is_file()}
    assert ledgers
    target = left_off(done.path, None)
    rows = np.arange(8)
    noised = np.concatenate([part.ravel() for part in target.update(rows).values()])
    bare = replace(target, config=target.config.model_copy(update={"privacy": PrivacySettings()}))
    plain = np.concatenate([part.ravel() for part in bare.update(rows).values()])
    cosine = noised @ plain / np.linalg.norm(noised) / np.linalg.norm(plain)
    assert abs(cosine) < 0.3 and np.linalg.norm(noised) > 0.1

    found = audit(done.path, tmp_path / "audit", PLAN)
    assert found.finished
    assert not [note for note in found.notes if "exactly" in note]  # the counts have noise
    assert {path: path.read_bytes() for path in ledgers} == ledgers


def test_what_a_guard_would_refuse_is_attacked_all_the_same_and_said(toy_values, tmp_path):
    """Rank 32 asks for 64 different tokens; two steps of four short texts have fewer."""
    path = tmp_path / "toy.toml"
    few = toy_values(method="own-prior", adapter={"rank": 32}, training={"steps": 2, "batch_size": 4})
    path.write_text(to_toml(make_config(few)))
    found = audit(path, tmp_path / "audit", replace(PLAN, batches=(1,), controls=()))
    assert [note for note in found.notes if "is refused: privacy.few_tokens" in note and "64 different" in note]
    assert found.finished


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "no such file"),
        (["RUN", "--client", "zebra"], "no such client with training data; there are amber, basil, coral"),
        (["RUN", "--control", "fedavg-lra"], "did you mean 'fedavg-lora'"),
        (["RUN", "--control", "local"], "local sends nothing in a round"),
        (["RUN", "--batch", "999"], "--batch 999: the client has"),
        (["LOCAL"], "local sends nothing in a round"),
    ],
)
def test_what_cannot_be_audited_is_refused_with_nothing_written(finished, run_cli, tmp_path, arguments, expected):
    places = {"RUN": "own-prior", "LOCAL": "local"}
    words = [finished(places[word]).path if word in places else word for word in arguments]
    code, told = run_cli("audit", *words, "--into", tmp_path / "audit")
    assert code == 2
    assert expected in " ".join(told.split())
    assert "Traceback" not in told
    assert not (tmp_path / "audit").exists()


def test_a_place_that_takes_nothing_is_refused_before_the_work(finished, run_cli, tmp_path):
    (tmp_path / "file").touch()
    code, told = run_cli("audit", finished("own-prior").path, "--into", tmp_path / "file" / "audit")
    assert code == 2
    assert f"{tmp_path / 'file'} is not a folder; give another --into" in " ".join(told.split())


def test_what_was_found_before_counts_for_the_same_round_and_data_alone(toy_values, toy_rows, tmp_path):
    table = toy_rows(tmp_path / "toy.csv")
    path = tmp_path / "toy.toml"
    path.write_text(to_toml(make_config(toy_values(method="fedavg-lora", data={"source": str(table)}))))
    plan = replace(PLAN, batches=(1,), trials=1, matched=0, controls=(), clients=1)
    heard: list[str] = []
    audit(path, tmp_path / "audit", plan, say=heard.append)
    audit(path, tmp_path / "audit", plan, say=heard.append)
    assert heard.count("fedavg-lora: from before") == 1
    toy_rows(table, seed=2)
    audit(path, tmp_path / "audit", plan, say=heard.append)
    assert heard.count("fedavg-lora: from before") == 1


def row(method, attack, knows, mean, **more):
    score = Estimate(mean=mean, low=mean - 0.05, high=mean + 0.05)
    values = {"sees": "gradient", "batch": 1, "steps": 1, "tokens": 9.0, "trials": 4, "attempts": []} | more
    return Reconstruction(method=method, attack=attack, knows=knows, scores={"f1": score}, **values)


def test_claims_follow_from_intervals():
    auc = Estimate(mean=0.6, low=0.52, high=0.68)
    members = [
        Membership(
            method="ce-lora", source="update", sees="update", knows="factors", examples=40, members=9, others=9,
            auc=auc, tpr=auc,
        )
    ]  # fmt: skip
    rows = [
        row("ce-lora", "guesser", "factors", 0.2),
        row("ce-lora", "span", "base", 0.24),
        row("ce-lora", "span", "factors", 0.9),
        row("fedavg-lora", "span", "factors", 0.5),
        row("fedavg-full", "span", "factors", 1.0),
    ]

    def held(found):
        return [claim.holds for claim in claims("ce-lora", found, members, "fedavg-full", "fedavg-lora")]

    # As good as a guesser; more than plain LoRA gives away; members are told; the control works.
    assert held(rows) == [True, False, False, True]
    rows[1] = row("ce-lora", "span", "start", 0.4)
    rows[3] = row("fedavg-lora", "span", "factors", 0.85)
    rows[4] = row("fedavg-full", "span", "factors", 0.8)
    assert held(rows) == [False, True, False, False]
