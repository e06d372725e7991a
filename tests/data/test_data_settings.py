from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trifed.data import ClientSettings, DataSettings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"split": "column"}, "needs the name of a column"),
        ({"column": "site"}, 'set split = "column"'),
        ({"split": "sizes"}, "needs sizes"),
        ({"split": "sizes", "sizes": []}, "needs sizes"),
        ({"split": "sizes", "sizes": [1, -2]}, "above 0"),
        ({"split": "sizes", "sizes": [1, float("inf")]}, "finite"),
        ({"split": "sizes", "sizes": [1, 2], "count": 3}, "names 2 clients"),
        ({"sizes": [1, 2]}, 'set split = "sizes"'),
        ({"min_examples": 20, "max_examples": 10}, "below min_examples"),
        ({"count": 0}, "greater than or equal to 1"),
        ({"alpha": 0}, "greater than 0"),
        ({"alpha": float("nan")}, "finite"),
        ({"split": "dirichelt"}, "'dirichlet'"),
        ({"cuont": 3}, "Extra inputs"),
    ],
)
def test_client_settings_that_cannot_be_used_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ClientSettings(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": []}, "empty list"),
        ({"source": " "}, "empty name"),
        ({"source": "a.csv", "text": "x", "label": "x"}, "different columns"),
        ({"source": "a.csv", "text": ""}, "empty column name"),
        ({"source": "a.csv", "valid_fraction": 0.5, "test_fraction": 0.5}, "nothing to train on"),
        ({"source": "a.csv", "test_fraction": 1.0}, "less than 1"),
        ({"source": "a.csv", "max_examples": 0}, "greater than or equal to 1"),
        ({}, "Field required"),
    ],
)
def test_data_settings_that_cannot_be_used_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DataSettings(**values)


def test_settings_survive_a_round_trip_and_cannot_be_changed() -> None:
    settings = DataSettings(source="a.csv", clients=ClientSettings(split="sizes", sizes=[2, 1]))
    assert DataSettings.model_validate(settings.model_dump(exclude_none=True, exclude_unset=True)) == settings
    with pytest.raises(ValidationError, match="frozen"):
        settings.text = "other"  # type: ignore[misc]
