"""The end of a run between sites: wherever the server is killed, the run can be finished."""

from __future__ import annotations

import json

import pytest

from trifed.common.errors import RunError
from trifed.federation.manifest import changed_files
from trifed.federation.run_folder import RunFolder

SECONDS = ("seconds", "seconds_total")


def lasting(coordinator):
    summary = coordinator.folder.read_json("summary.json")
    return json.dumps({k: v for k, v in summary.items() if k not in SECONDS})


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package catches it."""


@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora"])
def test_a_run_killed_at_its_end_can_be_finished(method, federation, events, monkeypatch):
    whole, channel = federation(method, folder="whole")
    whole.run()
    nodes = {number: federation.node(node.settings.name) for number, node in channel.clients.items()}
    for place, (name, write) in enumerate(
        [("finished", RunFolder.append), ("summary.json", RunFolder.write_text)]
    ):
        folder = f"killed-{place}"
        killed, _ = federation(method, folder=folder, nodes=nodes)

        def breaks(self, what, *args, _write=write, _name=name, **more):
            _write(self, what, *args, **more)
            if _name == "finished" and what["event"] == "finished":
                raise Killed

        def breaks_before(self, what, *args, _write=write, **more):
            if what == "summary.json":
                raise Killed
            _write(self, what, *args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, write.__name__, breaks if name == "finished" else breaks_before)
            with pytest.raises(Killed):
                killed.run()
        asked = len(killed.client_manager.channel.asked)
        again, channel = federation(method, folder=folder, nodes=nodes)
        again.run()
        assert asked and lasting(again) == lasting(whole)
        assert len(events(again, "finished")) == 1
        assert len(events(again, "delivered")) == len(events(whole, "delivered"))
        if name == "summary.json":
            assert channel.asked == []  # the last download was included in the checkpoint
        with pytest.raises(RunError):
            federation(method, folder=folder, nodes=nodes)[0].run()


def test_who_leaves_takes_the_kept_checkpoints_along(federation):
    coordinator, _ = federation()
    coordinator.run()
    kept = coordinator.folder.path / "checkpoints"
    assert len(list(kept.iterdir())) == 3
    coordinator.checkpoint.forget_earlier()
    assert not kept.exists() and coordinator.folder.rounds_done() == 2


def test_a_finished_run_between_sites_has_a_manifest(federation):
    coordinator, _ = federation("own-prior")
    coordinator.run()
    assert "summary.json" in coordinator.folder.read_json("manifest.json")
    assert changed_files(coordinator.folder) == []
