"""What a client refuses to send because it stands on too little: what is counted, and what is left behind."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import tomli_w
import torch

from test_cli_help import call
from trifed import make_config, resume, run
from trifed.common.errors import RunError
from trifed.config.settings import TrainingSettings
from trifed.federation import guards as guards_module
from trifed.federation.client_update import ClientDataset
from trifed.federation.guards import FLOOR, few_tokens, refuse_few_tokens, small_components, tokens_needed
from trifed.federation.run_folder import RunFolder
from trifed.federation.training.batches import RoundRandom, round_batches
from trifed.reports.comparison.verdict import cautions
from trifed.reports.read import read_source
from trifed.similarity import Summary
from trifed.tasks.tokens import EncodedTokens

CORE = (("x.lora_C.weight", (4, 4)),)


def client(*ids, name="amber"):
    data = EncodedTokens([list(row) for row in ids], np.zeros(len(ids), np.int64))
    return ClientDataset(0, name, data, data, data)


# -- what is counted


@pytest.mark.parametrize(
    ("layout", "needed"),
    [
        (CORE, 8),
        ((("x.lora_A.weight", (4, 32)), ("y.lora_B.weight", (64, 6)), ("head.weight", (40, 32))), 12),
        ((("head.weight", (3, 32)),), 0),
        ((("embeddings.weight", (190, 32)),), 0),
        ((), 0),
    ],
)
def test_twice_the_rank_of_what_is_sent(layout, needed):
    assert tokens_needed(layout) == needed


@pytest.mark.parametrize(("rows", "found"), [([range(8)], None), ([range(7)], 7), ([range(4), range(3, 8)], None)])
def test_equal_tokens_count_once_wherever_they_stand(rows, found):
    few = few_tokens(client(*rows), CORE, TrainingSettings(), 0, 1)
    assert (few.tokens if few else None) == found
    again = few_tokens(client(*rows, *[list(reversed(row)) for row in rows]), CORE, TrainingSettings(), 0, 1)
    assert (again.tokens if again else None) == found


def test_only_what_the_round_reads_counts():
    """One step of one example reads one of the rows: whichever it is, its 5 tokens."""
    rows = [range(5 * n, 5 * n + 5) for n in range(6)]
    few = few_tokens(client(*rows), CORE, TrainingSettings(steps=1, batch_size=1), 0, 1)
    assert (few.tokens, few.examples, few.needed, few.round) == (5, 1, 8, 1)
    assert few_tokens(client(*rows), CORE, TrainingSettings(steps=2, batch_size=1), 0, 1) is None


def test_without_examples_or_without_a_core_nothing_is_asked_for():
    assert few_tokens(client(), CORE, TrainingSettings(), 0, 1) is None
    assert few_tokens(client(range(2)), (("head.weight", (3, 32)),), TrainingSettings(), 0, 1) is None


@pytest.mark.parametrize(("examples", "settings"), [(37, {}), (37, {"epochs": 3}), (5, {"steps": 4}), (0, {})])
def test_the_rows_of_a_round_are_whole_epochs_in_order(examples, settings):
    training, lengths = TrainingSettings(batch_size=8, **settings), np.arange(examples)
    found = list(round_batches(lengths, training, RoundRandom.of(0, 1, 0)))
    a_pass = -(-examples // 8)
    assert len(found) == (training.steps if training.steps else training.epochs * a_pass)
    for first in range(0, len(found) - a_pass + 1, a_pass) if found else ():
        np.testing.assert_array_equal(np.sort(np.concatenate(found[first : first + a_pass])), lengths)


def test_the_rows_that_are_counted_are_those_that_are_trained_on(make_bench, monkeypatch):
    from trifed.federation.client_update import ClientState, RoundTraining, train_rounds

    shared_model, read = make_bench("ce-lora"), []
    data = client(*[[2, 5 + n, 3] for n in range(20)])
    batch = EncodedTokens.batch
    monkeypatch.setattr(EncodedTokens, "batch", lambda self, rows, d: read.append(rows) or batch(self, rows, d))
    training = TrainingSettings(steps=3, batch_size=4, device="cpu", precision="fp32")
    train_rounds(
        shared_model, [RoundTraining(data, ClientState(shared_model.start, {}, 0), None, 5, 2, 2)], training
    )
    expected = list(round_batches(data.train.lengths, training, RoundRandom.of(5, 2, 0)))
    np.testing.assert_array_equal(np.concatenate(read), np.concatenate(expected))


def test_under_the_rank_an_update_spans_what_went_in(make_bench):
    """dC = Σ_t (Bᵀ g_t)(A x_t)ᵀ, so its rows lie in the span of A x_1 … A x_t, and with t < r they fill it.

    Of one example of 5 tokens, rank 8: all five A x_t are found in the rows of dC, whatever the rest is.
    """
    shared_model = make_bench("ce-lora", adapter={"rank": 8})
    with torch.no_grad():
        for name, param in shared_model.parameters.items():
            param.add_(torch.randn(param.shape, generator=torch.Generator().manual_seed(len(name))) / 4)
    found = {}
    layer = next(m for n, m in shared_model.encoder.named_modules() if n.endswith("layer.0.attention.self.query"))
    layer.register_forward_hook(lambda module, inputs, output: found.update(x=inputs[0].detach()[0]))
    name = next(n for n in shared_model.parameters if "layer.0.attention.self.query.lora_C" in n)
    shared_model.model.eval()
    shared_model.model.loss(client([2, 10, 11, 12, 3]).train.batch(np.arange(1), torch.device("cpu"))).backward()
    change = shared_model.parameters[name].grad.double().numpy()
    factor = shared_model.parameters[name.replace("lora_C", "lora_A")].detach().double().numpy()
    read = found["x"][:5].double().numpy() @ factor.T
    rows = np.linalg.svd(change)[2][: np.linalg.matrix_rank(change, rtol=1e-4)]
    assert len(rows) == 5
    inside = read @ rows.T @ rows
    np.testing.assert_allclose(inside, read, atol=1e-3 * np.abs(read).max())


def summary_on(counts):
    counts = np.array(counts, np.int64)
    labels = np.arange(len(counts))
    moments = np.zeros((len(counts), 4), np.float32)
    return Summary(labels, counts, moments, moments, 0.0, labels, counts)


@pytest.mark.parametrize(("counts", "against"), [([], 0), ([FLOOR, 50], 0), ([FLOOR - 1, 50, 7], 2)])
def test_components_under_the_floor_are_named(counts, against):
    said = small_components(summary_on(counts))
    assert bool(said) == bool(against)
    if against:
        assert f"{against} of {len(counts)}" in said and f" {min(counts)}, " in said
        assert 'privacy.small_components = "warn"' in said


def test_all_clients_are_named_at_once():
    with pytest.raises(RunError, match=r" 8 .* 2: amber, 3 .*; coral, 2") as error:
        several = [client(range(3)), client(range(9), name="basil"), client(range(2), name="coral")]
        refuse_few_tokens(several, CORE, lambda name: TrainingSettings(), 0, 2)
    assert "basil" not in str(error.value) and 'privacy.few_tokens = "warn"' in str(error.value)


# -- a run


@pytest.fixture
def short_values(toy_values, toy_table, tmp_path):
    """Settings of a run where the sites dune and fog say one word and two, more or less often."""
    with toy_table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    said = {"dune": "parcel ", "fog": "refund charge "}
    rows += [[text * times, "billing", site] for site, text in said.items() for times in range(1, 15)]
    with (tmp_path / "short.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)

    def values(**changes):
        data = {"source": str(tmp_path / "short.csv"), "allow_single_class": True}
        return toy_values(**{"rounds": 2, "method": "ce-lora", "data": data, **changes})

    return values


def test_a_run_is_refused_before_it_leaves_anything(short_values, tmp_path):
    # [CLS], [SEP] and the words: three and four different tokens, of 8.
    with pytest.raises(RunError, match=r" 2: dune, 3 .*; fog, 4 .*round 1"):
        run(make_config(short_values()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_it_once_and_leaves_nothing(short_values, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(tomli_w.dumps(short_values()), encoding="utf-8")
    before = set(tmp_path.rglob("*"))
    said = call(capsys, monkeypatch, "run", "my.toml")
    assert said.code == 2 and set(tmp_path.rglob("*")) == before
    assert said.err.count("privacy.few_tokens: an upload") == 1


@pytest.mark.parametrize("policy", ["warn", "allow"])
def test_a_run_goes_on_where_it_is_told_to_and_a_report_says_so(policy, short_values, tmp_path):
    done = run(make_config(short_values(privacy={"few_tokens": policy})), tmp_path / "run")
    warned = [e for e in RunFolder.open(done.path).events() if e["event"] == "warned"]
    assert [e["client"] for e in warned] == (["dune", "fog"] if policy == "warn" else [])
    found = {caution.code: caution.text for caution in cautions(read_source(done.path))}
    assert ("few-examples" in found) == (policy == "warn")
    assert ("dune with ce-lora (privacy.few_tokens)" in found.get("few-examples", "")) == (policy == "warn")


def test_a_method_that_sends_no_core_is_not_asked(short_values, tmp_path):
    assert run(make_config(short_values(method="local", rounds=1)), tmp_path / "run").summary["finished"]


def test_a_run_broken_off_goes_on_when_the_guard_is_told_to(short_values, tmp_path):
    """The guards change no number, so the settings of a run that is under way may be changed there."""

    def stop(event):
        if event["event"] == "trained" and event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_config(short_values(privacy={"few_tokens": "warn"})), tmp_path / "run", stop)
    path = tmp_path / "run" / "config.toml"
    told = path.read_text(encoding="utf-8")
    path.write_text(told.replace('few_tokens = "warn"', 'few_tokens = "refuse"'), encoding="utf-8")
    with pytest.raises(RunError, match=r"privacy\.few_tokens"):
        resume(tmp_path / "run")
    path.write_text(told, encoding="utf-8")
    assert resume(tmp_path / "run").summary["finished"]


@pytest.mark.parametrize("policy", ["refuse", "warn", "allow"])
def test_a_summary_on_few_examples(policy, toy_values, tmp_path, monkeypatch):
    """No method here makes one; one that is added may."""
    floors = []

    def below(summary):
        floors.append(summary.counts.min())
        return small_components(summary_on([FLOOR - 1]))

    monkeypatch.setattr(guards_module, "small_components", below)
    config = make_config(toy_values(method="ce-lora", rounds=1, privacy={"small_components": policy}))
    if policy == "refuse":
        with pytest.raises(RunError, match=r"privacy\.small_components: 1 of 1"):
            run(config, tmp_path / "run")
        return
    run(config, tmp_path / "run")
    warned = [e["client"] for e in RunFolder.open(tmp_path / "run").events() if e["event"] == "warned"]
    assert warned == (["amber", "basil", "coral"] if policy == "warn" else [])
    assert min(floors) >= FLOOR


def test_examples_of_little_weight_do_not_hide_the_others():
    """With weights of 1 and 0 an upload is made from the examples of one label alone."""
    rows = client([2, 10, 3], [2, 11, 3], [2, 12, 3], [2, 13, 3])
    rows.train.labels[:] = [0, 1, 1, 1]
    settings = TrainingSettings(batch_size=4)
    for weights, few in (([1.0, 1.0], False), ([1.0, 0.2], False), ([1.0, 0.0], True), ([1.0, 1e-9], True)):
        weighted = replace(rows, class_weights=np.array(weights))
        found = few_tokens(weighted, (("x.lora_C.weight", (2, 2)),), settings, 0, 1)
        assert (found is not None) == few, weights
