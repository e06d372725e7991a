"""Train one model across several sites, and classify new texts with the model of one site."""

import sys

from trifed import make_config, run
from trifed.data import demo_corpus_path


def main(table: str = str(demo_corpus_path()), model: str = "demo", rounds: int = 5) -> list[str]:
    """Train on a table with the columns text, label and site; return predicted labels of two texts."""
    config = make_config(
        {
            "name": "train-and-predict",
            "rounds": rounds,
            "model": {"name": model, "max_length": 48},
            "data": {"source": table, "clients": {"split": "column", "column": "site"}},
        }
    )
    result = run(config)  # in runs/train-and-predict, which must not exist yet
    print(f"mean test accuracy over the sites: {result.accuracy['mean']:.3f}")
    for client in result.summary["clients"]:
        print(f"{client['name']}: {client['now']['accuracy']}, sent {client['bytes_up']:,} bytes")

    site = result.summary["clients"][0]["name"]
    classifier = result.client(site)
    texts = ["where is my parcel?", "i forgot my password"]
    labels = classifier.predict(texts)
    for text, label, row in zip(texts, labels, classifier.probabilities(texts), strict=True):
        print(f"{site}: {text!r} is {label} with probability {row.max():.2f}")
    return labels


if __name__ == "__main__":
    main(*sys.argv[1:])
