"""Training with noise that starts from a client's label counts: what is refused, and that each way out is one."""

from __future__ import annotations

import pytest

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import ConfigError
from trifed.config.run import make_config

SUMMARY = {"privacy": {"summary": {"epsilon": 4.0}}}
NO_PRIOR = {"personalization": {"label_prior": False}}
PRIOR = {"personalization": {"label_prior": True}}
SEALED = {"sealing": {"on": True}}
ROWS, AGREEMENT = {"aggregation": {"weights": "label-rows"}}, {"aggregation": {"groups": "agreement"}}
PLAIN = {"method": "fedavg-lora"}
ALL = {"aggregation": {"groups": "all", "weights": "examples"}}


def values(*changes):
    made = {
        "data": {"source": "x.csv", "labels": ["a", "b"]},
        "training": {"steps": 4},
        "privacy": {"training": {"epsilon": 8.0}},
    }
    for change in changes:
        made = deep_merge(made, change)
    return made


def problem(*changes):
    with pytest.raises(ConfigError) as refused:
        make_config(values(*changes))
    [text] = refused.value.problems
    return text


@pytest.mark.parametrize(
    ("given", "ways", "named"),
    [
        # What is there already is not asked for again.
        ([SEALED], [[SUMMARY], [NO_PRIOR]], {"privacy.summary"}),
        ([PLAIN, PRIOR], [[SUMMARY, ROWS], [NO_PRIOR]], {"aggregation.weights", "privacy.summary"}),
        ([PLAIN, PRIOR, SUMMARY], [[ROWS], [NO_PRIOR]], {"aggregation.weights"}),
        ([PLAIN, PRIOR, SUMMARY, SEALED], [[AGREEMENT], [NO_PRIOR]], {"aggregation.groups"}),
        ([PLAIN, PRIOR, SUMMARY, SEALED, ROWS], [[AGREEMENT], [NO_PRIOR]], {"aggregation.groups"}),
        ([PLAIN, PRIOR, SEALED, AGREEMENT], [[SUMMARY], [NO_PRIOR]], {"privacy.summary"}),
        ([SUMMARY, ALL], [[ROWS], [NO_PRIOR]], {"aggregation.weights"}),
        # No setting of the server helps where nothing is sent.
        ([{"personalization": {"share": False}}], [[NO_PRIOR]], set()),
        ([SUMMARY, {"personalization": {"share": False}}], [[NO_PRIOR]], set()),
    ],
)  # fmt: skip
def test_a_label_prior_without_noise_is_refused_and_every_way_out_is_one(given, ways, named):
    text = problem(*given)
    assert text.startswith("privacy.training: ") and "personalization.label_prior = false" in text
    others = {"aggregation.weights", "aggregation.groups", "privacy.summary"}
    assert {name for name in others if name in text} == named
    for way in ways:
        make_config(values(*given, *way))


def test_a_method_with_a_prior_of_its_own_is_not_told_to_turn_a_setting_off():
    text = problem({"method": "fedrod-lora"}, SUMMARY)
    assert "personalization.label_prior" not in text and "another method" in text and "aggregation.weights" in text
    make_config(values({"method": "fedrod-lora"}, SUMMARY, ROWS))


def test_a_baseline_is_named_as_one():
    given = [PLAIN, {"baselines": ["fedrod-lora"]}]
    assert "leave 'fedrod-lora' out of baselines" in problem(*given)
    make_config(values(*given, {"baselines": []}))
