"""A whole audit: its results, how it continues, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trifed import make_config, run
from trifed.attacks.audit import audit
from trifed.attacks.expectations import check_expectations
from trifed.attacks.plan import Plan
from trifed.attacks.target import load_target
from trifed.cli.app import main
from trifed.config.run import to_toml
from trifed.config.settings import PrivacySettings
from trifed.reports.audit.findings import Estimate, Membership, Reconstruction, read_findings
from trifed.reports.audit.report import audit_page
from trifed.reports.audit.tables import views_table

pytestmark = pytest.mark.slow


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Run the command line, and return its exit code and all that was printed."""

    def call(*words):
        monkeypatch.setattr("sys.argv", ["trifed", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out + printed.err

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
    """A file of settings with small ranks, so that no guard refuses a whole round."""
    path = tmp_path / "toy.toml"
    path.write_text(to_toml(make_config(toy_values(method="ce-lora", training={"epochs": 2}))))
    return path


def test_an_audit_has_results_of_every_kind_and_continues_after_an_interruption(settings, tmp_path):
    lines: list[str] = []
    found = audit(settings, tmp_path / "audit", PLAN, progress=lines.append)
    assert [text for text in lines if text.startswith("1 of 2, about ") and " minutes in all" in text]
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
    lines.clear()
    again = audit(settings, tmp_path / "audit", PLAN, progress=lines.append)
    assert "1 of 2, ce-lora: from before" in lines and "2 of 2, fedavg-lora: warming up" in lines
    assert again.reconstruction == found.reconstruction and again.membership == found.membership


def test_an_attacked_run_is_not_changed(finished, run_cli, tmp_path, monkeypatch):
    monkeypatch.setattr("trifed.attacks.plan.SMALL", replace(PLAN, announced=False))
    done = finished("own-prior")
    before = {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()}
    arguments = ["--into", tmp_path, "--batch", "1", "--trials", "1", "--rounds", "1"]
    code, printed = run_cli("audit", done.path, *arguments)
    assert code == 0, printed
    found = read_findings(tmp_path / "audit.json")
    assert (found.round, found.client) == (3, "amber")
    assert "audit.html" in printed
    page = (tmp_path / "audit.html").read_text()
    assert "own-prior" in page and "https://" not in page.replace("https://arxiv", "")
    assert {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()} == before


def test_of_a_method_with_turns_both_observations_are_what_the_next_round_sends(finished):
    target = load_target(finished("rolora").path, None)
    now = ".lora_A." if target.round % 2 else ".lora_B."
    gradient, update = (target.observe(kind, np.arange(4)).keys() for kind in ("gradient", "update"))
    assert gradient == update and {name.startswith("head.") or now in name for name in gradient} == {True}


def test_a_run_with_noise_is_attacked_through_its_noise_and_spends_no_budget(toy_values, tmp_path):
    """One round is sent with and without noise; noise as large as the clip leaves little similarity."""
    noise = {
        "summary": {"epsilon": 2, "delta": 1e-4},
        "update": {"epsilon": 2, "delta": 1e-4, "clip": 0.1},
        "few_tokens": "allow",
    }
    done = run(make_config(toy_values(method="own-prior", privacy=noise, wire={"bits": 32})), tmp_path / "run")
    ledgers = {path: path.read_bytes() for path in (done.path / "privacy").rglob("*") if path.is_file()}
    assert ledgers
    target = load_target(done.path, None)
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


def test_the_sums_of_a_sealed_run_are_attacked_and_its_controls_are_open(toy_values, tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(to_toml(make_config(toy_values(method="own-prior", sealing={"on": True}))))
    found = audit(path, tmp_path / "audit", replace(PLAN, matched=0, controls=("ffa-lora",)))
    assert found.finished and found.sealed
    for rows in (found.reconstruction, found.membership, found.labels):
        views = {(row.method, row.view, row.clients) for row in rows}
        mine = {("own-prior", "single", 1), ("own-prior", "sum", 3), ("own-prior", "others", 2)}
        assert views == {*mine, ("ffa-lora", "single", 1)}
    assert not [row for row in found.membership if row.source == "summary"]
    assert [row["clients"] for row in views_table(found).rows] == [1, 3, 2]
    assert "sum less its own" in audit_page(found, lambda text: None)


def test_a_run_that_a_guard_would_refuse_is_attacked_with_a_note(toy_values, tmp_path):
    """Rank 32 requires 64 different tokens; two steps of four short texts have fewer."""
    path = tmp_path / "toy.toml"
    few = toy_values(method="own-prior", adapter={"rank": 32}, training={"steps": 2, "batch_size": 4})
    path.write_text(to_toml(make_config(few)))
    found = audit(path, tmp_path / "audit", replace(PLAN, batches=(1,), controls=()))
    assert [note for note in found.notes if "privacy.few_tokens" in note and "64" in note]
    assert found.finished


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "no such file"),
        (["RUN", "--client", "zebra"], "amber, basil, coral"),
        (["RUN", "--control", "fedavg-lra"], "'fedavg-lora'"),
        (["RUN", "--control", "local"], "local sends nothing"),
        (["RUN", "--batch", "999"], "--batch 999"),
        (["LOCAL"], "local sends nothing"),
    ],
)
def test_a_refused_audit_writes_nothing(finished, run_cli, tmp_path, arguments, expected):
    places = {"RUN": "own-prior", "LOCAL": "local"}
    words = [finished(places[word]).path if word in places else word for word in arguments]
    code, printed = run_cli("audit", *words, "--into", tmp_path / "audit")
    assert code == 2
    assert expected in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not (tmp_path / "audit").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(finished, run_cli, tmp_path):
    (tmp_path / "file").touch()
    code, printed = run_cli("audit", finished("own-prior").path, "--into", tmp_path / "file" / "audit")
    assert code == 2
    assert str(tmp_path / "file") in "".join(printed.split()) and "--into" in printed


def test_kept_results_are_used_for_the_same_data_alone(toy_values, toy_rows, tmp_path):
    table = toy_rows(tmp_path / "toy.csv")
    path = tmp_path / "toy.toml"
    path.write_text(to_toml(make_config(toy_values(method="fedavg-lora", data={"source": str(table)}))))
    plan = replace(PLAN, batches=(1,), trials=1, matched=0, controls=(), clients=1)
    lines: list[str] = []
    audit(path, tmp_path / "audit", plan, progress=lines.append)
    audit(path, tmp_path / "audit", plan, progress=lines.append)
    assert lines.count("fedavg-lora: from before") == 1
    toy_rows(table, seed=2)
    audit(path, tmp_path / "audit", plan, progress=lines.append)
    assert lines.count("fedavg-lora: from before") == 1


def row(method, attack, knows, mean, **more):
    score = Estimate(mean=mean, low=mean - 0.05, high=mean + 0.05)
    values = {"sees": "gradient", "batch": 1, "steps": 1, "tokens": 9.0, "trials": 4, "attempts": []} | more
    return Reconstruction(method=method, attack=attack, knows=knows, scores={"f1": score}, **values)


def test_expectations_are_checked_by_intervals():
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
        return [
            claim.holds for claim in check_expectations("ce-lora", found, members, "fedavg-full", "fedavg-lora")
        ]

    # As good as a guesser; more than plain LoRA gives away; members are told; the control works.
    assert held(rows) == [True, False, False, True]
    rows[1] = row("ce-lora", "span", "start", 0.4)
    rows[3] = row("fedavg-lora", "span", "factors", 0.85)
    rows[4] = row("fedavg-full", "span", "factors", 0.8)
    assert held(rows) == [False, True, False, False]


def test_under_a_seal_sums_are_judged_and_single_uploads_are_a_control():
    auc, hidden = Estimate(mean=0.7, low=0.65, high=0.75), Estimate(mean=0.53, low=0.5, high=0.56)
    about = {"method": "own-prior", "source": "update", "sees": "update", "knows": "factors", "examples": 40}
    members = [
        Membership(**about, members=9, others=9, auc=found, tpr=found, view=view)
        for view, found in (("single", auc), ("sum", hidden), ("others", hidden))
    ]
    rows = [
        row("own-prior", "span", "factors", 0.9, sees="update"),
        row("own-prior", "guesser", "factors", 0.2),
        row("own-prior", "span", "factors", 0.42, sees="update", view="sum", clients=3),
        row("own-prior", "guesser", "factors", 0.4, view="sum", clients=3),
    ]

    def held(sealed, found=rows):
        return [c.holds for c in check_expectations("own-prior", found, members, "", "", sealed=sealed)]

    assert held(False) == [False]  # members are told from single uploads
    assert held(True) == [True, True]
    rows[2] = row("own-prior", "span", "factors", 0.6, sees="update", view="sum", clients=3)
    assert held(True) == [False, True]
