"""The ledger: what is in it is on the disk before anything leaves, what is over the budget is never made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from trifed.common.errors import RunError
from trifed.config.settings import PrivacySettings
from trifed.privacy import Entry, Ledger, epsilon_of, noise_multiplier, read_ledger

BUDGET = PrivacySettings.model_validate({"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0}})
ROUNDS = 4
SUMMARY_Z = noise_multiplier(4.0, 1e-5)
UPDATE_Z = noise_multiplier(8.0, 1e-5, ROUNDS)


def entry(what, number, digest, z):
    return Entry(what=what, round=number, multiplier=z, digest=digest)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path, "amber", BUDGET)


def spend_all(ledger):
    ledger.enter(entry("summary", 0, "s", SUMMARY_Z))
    for number in range(1, ROUNDS + 1):
        ledger.enter(entry("update", number, f"u{number}", UPDATE_Z))


def test_the_configured_run_fits_and_nothing_more(ledger, tmp_path):
    spend_all(ledger)
    before = ledger.path.read_bytes()
    for what, number, z in (("summary", 0, SUMMARY_Z), ("update", ROUNDS + 1, UPDATE_Z), ("update", 2, UPDATE_Z)):
        with pytest.raises(RunError, match=f"privacy.{what}: amber ") as told:
            ledger.enter(entry(what, number, "another", z))
        assert "\n" not in str(told.value)
    assert ledger.path.read_bytes() == before
    # One more would really be over: it is not refused for nothing.
    assert epsilon_of([UPDATE_Z] * (ROUNDS + 1), 1e-5) > 8.0


def test_the_same_message_again_tells_nothing_new(ledger):
    spend_all(ledger)
    ledger.enter(entry("update", 3, "u3", UPDATE_Z))
    assert len(ledger.book.entries) == 1 + ROUNDS


def test_another_message_for_the_same_round_counts_again(ledger):
    ledger.enter(entry("update", 1, "first", UPDATE_Z))
    ledger.enter(entry("update", 1, "again", UPDATE_Z))
    assert [entry.digest for entry in read_ledger(ledger.path).entries] == ["first", "again"]


def test_what_is_checked_before_is_what_is_refused_after(ledger):
    for number in range(1, ROUNDS + 1):
        ledger.check(entry("update", number, "", UPDATE_Z))
        ledger.enter(entry("update", number, f"u{number}", UPDATE_Z))
    ledger.check(entry("update", 2, "", UPDATE_Z))  # perhaps it is sent again as it was
    with pytest.raises(RunError, match="not made"):
        ledger.check(entry("update", ROUNDS + 1, "", UPDATE_Z))


def test_what_has_no_budget_is_entered_all_the_same(tmp_path):
    ledger = Ledger(tmp_path, "amber", PrivacySettings.model_validate({"summary": {"epsilon": 4.0}}))
    ledger.enter(entry("update", 1, "u", None))
    assert read_ledger(ledger.path).entries[0].multiplier is None


def test_a_new_process_goes_on_where_the_old_one_was(ledger, tmp_path):
    spend_all(ledger)
    again = Ledger(tmp_path, "amber", BUDGET)
    assert again.book == ledger.book
    with pytest.raises(RunError):
        again.enter(entry("update", 9, "x", UPDATE_Z))


@pytest.mark.parametrize("text", ["", "{", '{"client": "amber"}', "\xff"])
def test_a_damaged_ledger_is_no_empty_one(tmp_path, text):
    (tmp_path / "ledger.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match="damaged"):
        Ledger(tmp_path, "amber", BUDGET)


def test_a_ledger_stays_with_its_client_and_budget(ledger, tmp_path):
    spend_all(ledger)
    larger = PrivacySettings.model_validate({"summary": {"epsilon": 4.0}, "update": {"epsilon": 80.0}})
    for name, budget in (("basil", BUDGET), ("amber", larger)):
        with pytest.raises(RunError, match="new run"):
            Ledger(tmp_path, name, budget)


def test_lost_entries_count_for_every_round_before(ledger, tmp_path):
    ledger.enter(entry("update", 2, "known", UPDATE_Z))
    ledger.lose()
    assert read_ledger(ledger.path).lost
    for number in (1, 2, 3):
        ledger.enter_missing(entry("update", number, "lost", UPDATE_Z))
    assert [(e.round, e.digest) for e in ledger.book.entries] == [(2, "known"), (1, "lost"), (3, "lost")]


WRITER = """
import sys
from pathlib import Path
from trifed.privacy import Entry, Ledger
from trifed.config.settings import PrivacySettings
ledger = Ledger(Path(sys.argv[1]), "amber", PrivacySettings.model_validate({"update": {"epsilon": 1000.0}}))
for number in range(1, 100_000):
    ledger.enter(Entry(what="update", round=number, digest=str(number), multiplier=1e4))
    print(number, flush=True)  # the release
"""


def test_a_process_that_is_killed_has_entered_all_that_it_released(tmp_path):
    for wait in (0.0, 0.013, 0.05):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / str(wait))], stdout=subprocess.PIPE, text=True
        ) as writer:
            released = [int(writer.stdout.readline())]
            time.sleep(wait)
            os.kill(writer.pid, signal.SIGKILL)
            released += [int(line) for line in writer.stdout if line.endswith("\n")]
        entered = [entry.round for entry in read_ledger(tmp_path / str(wait) / "ledger.json").entries]
        assert entered[: len(released)] == released
        assert len(entered) - len(released) in (0, 1)  # the last may be entered and not yet released


def test_an_entry_that_cannot_be_written_stops_the_release(ledger, tmp_path):
    def spend():
        ledger.enter(entry("summary", 0, "s", SUMMARY_Z))

    (tmp_path / "ledger.json").mkdir()  # as a disk that takes nothing
    with pytest.raises(OSError):
        spend()
    assert ledger.book.entries == ()
