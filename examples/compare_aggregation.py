"""Compare an aggregation rule of your own with built-in methods, on the same splits and with the same settings.

The rule is in capped_lora.py: an average in which no client has more than a given share. For a fair comparison all
methods get the same personalization and compression, so that the difference comes from how they train and average.
"""

import sys
from pathlib import Path

from trifed import ComparisonResult, compare, make_comparison
from trifed.data import demo_corpus_path
from trifed.methods import use_method_files

PARTS = {
    # The head's bias is the client's label prior, the head is calibrated on validation data, and the model that a
    # client uses is three quarters of the way from the trained to the received one.
    "personalization": {"label_prior": True, "calibrate": True, "interpolate": 0.75},
    "wire": {"bits": 1},  # one bit for each number that is sent
}
"""Parts that own-prior has by default, for all methods."""
AGGREGATION = {"weights": "label-rows", "groups": "agreement"}
"""Average each row of the head by examples of its label, over clients that agree on what the labels mean.

A method with an aggregation of its own, such as capped-lora, cannot be given another one.
"""


def settings(table: str, model: str, rounds: int, seeds: list[int]) -> dict[str, object]:
    """Return the settings of the comparison, as in a TOML file for `trifed compare`."""
    return {
        "name": "aggregation",  # results are written to runs/aggregation
        "methods": ["fedavg-lora", "own-prior", "capped-lora"],  # the first one is the reference
        "seeds": seeds,  # each seed is another split and another start
        "run": {
            "rounds": rounds,
            "model": {"name": model, "max_length": 48},
            "data": {"source": table, "clients": {"split": "column", "column": "site"}, "max_examples": 600},
            **PARTS,
        },
        "method_settings": {
            "fedavg-lora": {"aggregation": AGGREGATION},  # own-prior has it by default
            "capped-lora": {"method": {"most": 0.3}},
        },
    }


def main(table: str = str(demo_corpus_path()), model: str = "demo", rounds: int = 3) -> ComparisonResult:
    """Run the comparison on a table with the columns text, label and site; return its result."""
    use_method_files([Path(__file__).with_name("capped_lora.py")])  # here, and in processes of the comparison
    result = compare(make_comparison(settings(table, model, rounds, seeds=[0, 1])))
    print(result)
    print(result.table()[["mean", "interval_low", "interval_high", "up_per_round"]])
    print(result.differences())
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
