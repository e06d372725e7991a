"""Folders and files appear whole or not at all."""

from __future__ import annotations

import pytest

from trifed.common.files import is_free, whole_file, whole_folder


def test_a_folder_appears_at_the_end_with_what_is_in_it(tmp_path):
    target = tmp_path / "above" / "new"
    with whole_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("whole", encoding="utf-8")
        assert not target.exists()
    assert (target / "inner" / "file").read_text(encoding="utf-8") == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_file_appears_at_the_end(tmp_path):
    target = tmp_path / "above" / "new.csv"
    with whole_file(target) as partial:
        partial.write_text("whole", encoding="utf-8")
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "whole"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("make", [whole_folder, whole_file])
@pytest.mark.parametrize("reason", [KeyboardInterrupt, OSError])
def test_a_failure_leaves_nothing(make, reason, tmp_path):
    with pytest.raises(reason), make(tmp_path / "new") as partial:
        (partial / "file" if partial.is_dir() else partial).write_text("half", encoding="utf-8")
        raise reason
    assert list(tmp_path.iterdir()) == []


def test_only_nothing_and_an_empty_folder_are_free(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert is_free(tmp_path / "nothing") and is_free(tmp_path / "empty")
    assert not is_free(tmp_path / "file") and not is_free(tmp_path)
    with whole_folder(tmp_path / "empty") as folder:
        (folder / "file").touch()
    assert not is_free(tmp_path / "empty")
