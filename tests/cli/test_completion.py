"""What the shell completes, and how little it takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from test_cli_help import call
from test_quick_commands import HEAVY

ALL = """
import sys
from trifed.cli import completion
for complete in (completion.methods, completion.baselines, completion.tasks, completion.settings):
    complete("")
print(*{name.partition(".")[0] for name in sys.modules})
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trifed run --method own", ["own-prior", "own-prior-lora"]),
        ("trifed run --baseline al", ["alone"]),
        ("trifed run --task image-text-", ["image-text-pairs", "image-text-to-text"]),
        ("trifed run --set training.learning", ["training.learning_rate="]),
        ("trifed comp", ["compare"]),
    ],
)
def test_names_are_completed(capsys, monkeypatch, words, expected):
    monkeypatch.setenv("_TRIFED_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    said = call(capsys, monkeypatch)
    assert said.code == 0 and said.out.split() == expected


def test_the_root_command_can_install_completion(capsys, monkeypatch):
    text = call(capsys, monkeypatch, "--help").out
    assert "--install-completion" in text and "--show-completion" in text


def test_completion_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", ALL], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and set(done.stdout.split()) & HEAVY == set()
