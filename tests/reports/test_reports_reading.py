"""From folders to the one view that all reports share."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from studies import make_comparison, write_comparison

from trifed.common.errors import RunError
from trifed.federation.run_folder import RunFolder
from trifed.reports.read import partition_name, read_source

KEPT = Path(__file__).parents[1] / "fixtures" / "kept_runs" / "0.1.0"


def only(source):
    (partition,) = source.study.results.values()
    return partition


def test_a_run_and_its_baselines_are_a_small_comparison(run_folder):
    source = read_source(run_folder)
    assert (source.kind, source.study.finished, source.study.missing) == ("run", True, [])
    assert source.study.methods == ["ce-lora", "fedavg-lora", "local"]
    for method, inner in (("ce-lora", run_folder), ("local", run_folder / "baselines" / "local")):
        summary = json.loads((inner / "summary.json").read_text())
        found = only(source).methods[method]
        assert found.mean == summary["accuracy"]["mean"]
        assert found.bytes.total == summary["bytes"]["total"]
        assert found.client_accuracy == [client["now"]["accuracy"] for client in summary["clients"]]
        assert found.learning_rate == 1e-2
    assert only(source).methods["fedavg-lora"].evaluated_model == "received"
    assert set(only(source).controls) == {"probe-alone", "probe-all", "probe-all-prior", "class-means", "majority"}
    assert all(len(spread.client_accuracy) == 3 for spread in only(source).controls.values())


def test_bytes_of_a_round_and_of_a_single_time_add_up(run_folder):
    clients, rounds = 3, 3
    for found in only(read_source(run_folder)).methods.values():
        sent = found.bytes
        per_client = rounds * (sent.up_per_round + sent.down_per_round) + sent.once_up + sent.once_down
        assert sent.total == pytest.approx(clients * per_client)
        assert [point.bytes for point in found.curve] == sorted(point.bytes for point in found.curve)
        assert found.curve[0].bytes == 0
        last = (
            0 if found.evaluated_model == "received" else clients * sent.down_per_round
        )  # for what comes after this run
        assert found.curve[-1].bytes == sent.total - last


def test_plain_loras_bytes_are_at_the_runs_bits_and_at_32(run_folder):
    for method, inner in (("ce-lora", run_folder), ("local", run_folder / "baselines" / "local")):
        sent, found = json.loads((inner / "summary.json").read_text())["bytes"], only(read_source(run_folder))
        one = found.methods[method]
        assert one.bits == sent["bits"] == 32 and one.fedavg_lora_would_send == sent["fedavg_lora_would_send"] > 0


def test_plain_loras_bytes_of_an_earlier_version_were_at_32_bits():
    """Version 0.1.0 did not write the bits down; the run had one."""
    path = KEPT / "runs" / "finished"
    sent = json.loads((path / "summary.json").read_text())["bytes"]
    found = only(read_source(path)).methods["own-prior"]
    assert (found.bits, found.fedavg_lora_would_send) == (None, None)
    assert found.fedavg_lora_would_send_at_32_bits == sent["fedavg_lora_would_send"]


def test_bytes_by_tensor_add_up_too(run_folder):
    source = read_source(run_folder)
    (details,) = source.details.values()
    assert set(details.manifest) == {"ce-lora", "fedavg-lora"}
    for method, tensors in details.manifest.items():
        sent = only(source).methods[method].bytes
        for column in ("once_up", "up_per_round", "once_down", "down_per_round"):
            assert sum(row[column] for row in tensors.values()) == pytest.approx(getattr(sent, column))
    assert any(".lora_C." in name for name in details.manifest["ce-lora"])


def test_matrices_are_those_of_the_last_round_and_of_methods_with_a_similarity(run_folder):
    (details,) = read_source(run_folder).details.values()
    assert details.round == 3
    assert list(details.matrices) == ["ce-lora"]  # fedavg-lora's weights are those of a plain average
    assert details.matrices["ce-lora"]["weights"].sum(1) == pytest.approx([1, 1, 1])


def test_the_difference_has_an_interval_over_the_clients(run_folder):
    partition = only(read_source(run_folder))
    gap = partition.difference("ce-lora", "local")
    pairs = zip(*(partition.methods[m].client_accuracy for m in ("ce-lora", "local")), strict=True)
    gaps = [a - b for a, b in pairs]
    mean = sum(gaps) / 3
    reach = 4.302653 * math.sqrt(sum((g - mean) ** 2 for g in gaps) / 2 / 3)  # t of two degrees of freedom
    assert gap.mean == pytest.approx(mean)
    assert gap.interval == pytest.approx((mean - reach, mean + reach))
    turned = partition.difference("local", "ce-lora")
    assert turned.mean == -gap.mean
    assert turned.interval == (-gap.interval[1], -gap.interval[0])


def test_of_a_broken_off_run_only_whole_rounds_count(broken_off):
    source = read_source(broken_off)
    assert not source.study.finished
    begun, other = source.study.missing
    assert (begun.method, other.method, other.state) == ("ce-lora", "local", "not started")
    assert begun.state.endswith("round 2")
    assert source.resume_command == f"trifed run --resume {broken_off}"
    found = only(source).methods["ce-lora"]
    assert [point.round for point in found.curve] == [0, 1, 2]
    events = RunFolder(broken_off).events()
    assert sum(e["event"] == "scores" and e["round"] == 3 for e in events) == 2  # of three clients
    last = [e["test"]["accuracy"] for e in events if e["event"] == "scores" and e["round"] == 2]
    assert found.mean == pytest.approx(sum(last) / 3)


def test_a_run_between_sites_is_known_by_its_folder_and_continues_with_its_script(tmp_path):
    folder = tmp_path / "server" / "runs" / "tickets"
    shutil.copytree(KEPT / "sites-stopped" / "server", folder)
    assert read_source(folder).resume_command == "run.sh"
    (tmp_path / "server" / "run.sh").touch()
    source = read_source(folder)
    assert source.study.between_sites and source.resume_command == str(tmp_path / "server" / "run.sh")
    assert not read_source(KEPT / "runs" / "stopped").study.between_sites


def test_a_run_broken_off_in_its_first_round_has_no_result(broken_off, tmp_path):
    folder = tmp_path / "early"
    folder.mkdir()
    for name in ("config.toml", "split.json"):
        (folder / name).write_bytes((broken_off / name).read_bytes())
    lines = (broken_off / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(lines[:5]))
    source = read_source(folder)
    assert source.study.missing[0].state.endswith("round 1")
    assert only(source).methods == {}


def test_a_last_line_that_was_broken_off_is_none(own_run):
    before = RunFolder(own_run).events()
    with (own_run / "events.jsonl").open("a") as file:
        file.write('{"event": "trai')
    assert RunFolder(own_run).events() == before
    assert only(read_source(own_run)).methods["ce-lora"].mean is not None


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("events.jsonl", b"{not json\n", "damaged"),
        ("summary.json", b"{", "damaged"),
        ("split.json", b"\xff\xfe", "damaged"),
        ("matrices/round-0003.safetensors", b"nonsense", "damaged"),
    ],
)
def test_a_damaged_file_is_named(own_run, name, content, says):
    (own_run / name).write_bytes(content)
    with pytest.raises(RunError, match=says) as error:
        read_source(own_run)
    assert name in str(error.value)


def test_a_comparison_is_read_as_written(comparison):
    source = read_source(comparison)
    assert source.kind == "comparison"
    assert source.study.model_dump(exclude_unset=True) == read_source(comparison).study.model_dump(
        exclude_unset=True
    )
    written = json.loads((comparison / "comparison.json").read_text())
    for place, partition in written["results"].items():
        for method, values in partition["methods"].items():
            found = source.study.results[place].methods[method]
            found = found.model_dump(mode="json", by_alias=True, exclude_unset=True)
            assert {key: found[key] for key in values} == values


def test_a_comparison_knows_its_run_folders(run_folder, tmp_path):
    folder = write_comparison(tmp_path / "c", make_comparison(("intents-0.5", "intents-0.1")))
    place = folder / "runs" / "intents-0.5" / "ce-lora" / "seed-1"
    place.parent.mkdir(parents=True)
    place.symlink_to(run_folder)
    details = read_source(folder).details
    assert details["intents-0.5"].split["clients"][0]["name"] == "amber"
    assert list(details["intents-0.5"].matrices) == ["ce-lora"]
    assert details["intents-0.1"].split is None


def test_a_real_comparison_says_what_a_run_says(real_comparison):
    source = read_source(real_comparison)
    written = json.loads((real_comparison / "comparison.json").read_text())
    partition = only(source)
    known = {field.alias or name for name, field in type(partition.methods["ce-lora"]).model_fields.items()}
    assert written["results"]["all"]["methods"]["ce-lora"].keys() <= known
    for method in ("local", "ce-lora"):
        alone = only(read_source(real_comparison / "runs" / "all" / method / "seed-0")).methods[method]
        found = partition.methods[method]
        for name in ("mean", "worst", "best", "mean_trained", "client_accuracy", "bytes", "curve", "plateau"):
            assert getattr(found, name) == getattr(alone, name), name
    (details,) = source.details.values()
    assert list(details.matrices) == ["ce-lora"]
    assert list(details.manifest) == ["ce-lora"]


def test_a_gap_that_was_not_computed_comes_from_the_clients(real_comparison):
    partition = only(read_source(real_comparison)).model_copy(update={"differences": {}})
    gap = partition.difference("ce-lora", "local")
    pairs = zip(*(partition.methods[m].client_accuracy for m in ("ce-lora", "local")), strict=True)
    assert gap.mean == pytest.approx(sum(a - b for a, b in pairs) / 3)
    assert gap.interval[0] <= gap.mean <= gap.interval[1]


def test_how_to_go_on_with_a_comparison(tmp_path):
    values = make_comparison()
    values["finished"] = False
    folder = write_comparison(tmp_path / "my runs" / "c", values)
    command = f"trifed compare '{folder / 'comparison.toml'}' --runs '{folder.parent}'"
    assert read_source(folder).resume_command == "", "collected results have no settings to go on with"
    (folder / "comparison.toml").write_text("")
    assert read_source(folder).resume_command == command


def test_numbers_that_are_missing_stay_missing(tmp_path):
    values = make_comparison()
    found = values["results"]["intents-0.5"]["methods"]["ce-lora"]
    found.update(mean=None, interval=[None, None], worst=None, best=None, rounds_to_target=None, plateau=None)
    found["something_new"] = 1
    study = read_source(write_comparison(tmp_path / "c", values)).study
    assert study.results["intents-0.5"].methods["ce-lora"].interval is None


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda v: v["results"]["intents-0.5"]["methods"]["local"].update(mean="high"), "methods.local.mean"),
        (lambda v: v.pop("methods"), "methods"),
        (lambda v: v.update(seeds=3), "seeds"),
    ],
)
def test_what_is_wrong_in_a_comparison_is_named(tmp_path, change, place):
    values = make_comparison()
    change(values)
    with pytest.raises(RunError, match=re.escape(place)) as error:
        read_source(write_comparison(tmp_path / "c", values))
    assert "comparison.json" in str(error.value)


def test_a_folder_of_runs_names_what_is_inside(run_folder, tmp_path):
    with pytest.raises(RunError, match="inside are beside"):
        read_source(run_folder.parent)


def test_a_folder_that_is_not_there_names_those_that_are(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"nowhere: no such folder.*`trifed run --name") as error:
        read_source(Path("nowhere"))
    assert "config.toml" not in str(error.value)
    shutil.copytree(run_folder, tmp_path / "runs" / "tickets")
    for missing in ("nowhere", "runs/tikets"):
        with pytest.raises(RunError, match=rf"{missing}: no such folder.* runs/tickets\."):
            read_source(Path(missing))


@pytest.mark.parametrize(
    ("clients", "name"),
    [
        ({"split": "column", "column": "site"}, "t.csv by column site"),
        ({"split": "dirichlet", "alpha": 0.5}, "t.csv by dirichlet 0.5"),
        ({"split": "pathological", "labels_per_client": 2}, "t.csv by 2 labels a client"),
        ({"split": "iid"}, "t.csv by iid"),
    ],
)
def test_a_run_is_named_after_its_table_and_split(clients, name):
    assert partition_name({"data": {"source": "some/where/t.csv", "clients": clients}}) == name


def test_a_message_has_its_own_size_whoever_takes_part(finished):
    whole, part = (finished("ce-lora", participation=share) for share in (1.0, 0.34))
    sizes = [only(read_source(done.path)).methods["ce-lora"].bytes for done in (whole, part)]
    assert sizes[0].total > sizes[1].total
    for name in ("up_per_round", "down_per_round", "once_up"):
        assert getattr(sizes[0], name) == getattr(sizes[1], name) > 0
    assert sizes[0].up_per_round == whole.summary["bytes"]["per_upload"]
