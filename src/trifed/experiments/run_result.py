"""The result of a finished run: numbers, tables, and the clients' models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifed.reports.format import percent, plural, size

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from trifed.federation.client_model import Classifier, RetrievalModel, Writer
    from trifed.federation.tagger import Tagger
    from trifed.federation.target_models import MultiLabelClassifier, Regressor


@dataclass(frozen=True, repr=False)
class RunResult:
    """A finished run.

    Attributes:
        path: The run's folder.
        summary: Content of its summary.json.
        split: Content of its split.json.
        baselines: Results of the methods that were run beside it.
    """

    path: Path
    summary: dict[str, Any]
    split: dict[str, Any]
    baselines: dict[str, RunResult]

    @property
    def accuracy(self) -> dict[str, float]:
        """The `mean`, `worst`, `best` and `weighted_mean` test accuracy over the clients."""
        return {name: self.summary["accuracy"][name] for name in ("mean", "worst", "best", "weighted_mean")}

    @property
    def clients(self) -> pd.DataFrame:
        """One row for each client: test examples, accuracy and loss before and after, metrics, rounds, bytes."""
        import pandas as pd

        rows = [
            {
                "client": client["name"],
                "test_examples": (client["now"] or {}).get("examples", 0),
                **{
                    f"{name}{when}": (client[key] or {}).get(name)
                    for name in ("accuracy", "loss")
                    for key, when in (("before", "_before"), ("now", ""))
                },
                **{name: (client["now"] or {}).get(name) for name in self.summary.get("metrics", {})},
                **{name: client[name] for name in ("rounds", "bytes_up", "bytes_down")},
            }
            for client in self.summary["clients"]
        ]
        return pd.DataFrame(rows).set_index("client")

    @property
    def history(self) -> pd.DataFrame:
        """One row for each evaluated round: accuracy, training loss in nats, all bytes so far, and metrics.

        Accuracy and metrics are means over the clients, on test data; with `valid_`, on validation data.
        """
        import pandas as pd

        rows = [
            {key: value for key, value in point.items() if key not in ("metrics", "valid_metrics")}
            | point.get("metrics", {})
            | {f"valid_{name}": value for name, value in point.get("valid_metrics", {}).items()}
            for point in self.summary["curve"]
        ]
        return pd.DataFrame(rows).set_index("round")

    def __repr__(self) -> str:
        """Return the result in a sentence."""
        accuracy, sent, metric = self.accuracy, self.summary["bytes"], self.summary.get("metric", "accuracy")
        shown = f"{percent(accuracy['mean'])} % (worst {percent(accuracy['worst'])} %)"
        beside = ", ".join(f"{n} {percent(other.accuracy['mean'])} %" for n, other in self.baselines.items())
        return (
            f"{self.summary['name']}: {self.summary['method']}, {plural(len(self.summary['clients']), 'client')}, "
            f"{self._rounds()}; mean test {metric} {shown}"
            f"{f', {beside}' if beside else ''}; "
            f"{size(sent['up'] + sent['down'])} sent; {self.path}"
        )

    def _rounds(self) -> str:
        """Return how many rounds the run had, and of which one the models are."""
        done = self.summary.get("ended_early", {}).get("round", self.summary["rounds"])
        kept = self.summary.get("kept_round", {}).get("round", done)
        return plural(done, "round") + (f", the models of round {kept}" if kept != done else "")

    def plot(self) -> Figure:
        """Draw the run and its baselines as one figure: accuracy over rounds and of each client, bytes sent."""
        from trifed.reports.comparison.plots import result_figure
        from trifed.reports.read import read_source

        return result_figure(read_source(self.path))

    def figures(self) -> dict[str, Figure]:
        """Draw every figure of the report, by its title: accuracy over rounds, over bytes and per client, …"""
        from trifed.reports.comparison.report import comparison_document, figures_of
        from trifed.reports.read import read_source

        return figures_of(comparison_document(read_source(self.path)))

    def client(self, name: str) -> Classifier:
        """Load one client's model to predict with.

        Raises:
            RunError: There is no such client, or its model is a language model, which `writer` loads.
        """
        from trifed.federation.client_model import load_client

        return load_client(self.path / "clients" / name)

    def writer(self, name: str) -> Writer:
        """Load one client's language model to generate text with.

        Raises:
            RunError: There is no such client, or its model is a classifier.
        """
        from trifed.federation.client_model import load_writer

        return load_writer(self.path / "clients" / name)

    def matcher(self, name: str) -> RetrievalModel:
        """Load one client's model of images and captions to match images with texts.

        Raises:
            RunError: There is no such client, or its model is of another kind.
        """
        from trifed.federation.client_model import load_retrieval_model

        return load_retrieval_model(self.path / "clients" / name)

    def regressor(self, name: str) -> Regressor:
        """Load one client's model of numbers.

        Raises:
            RunError: There is no such client, or its model is of another kind.
        """
        from trifed.federation.target_models import load_regressor

        return load_regressor(self.path / "clients" / name)

    def multi_label_classifier(self, name: str) -> MultiLabelClassifier:
        """Load one client's classifier with several labels.

        Raises:
            RunError: There is no such client, or its model is of another kind.
        """
        from trifed.federation.target_models import load_multi_label_classifier

        return load_multi_label_classifier(self.path / "clients" / name)

    def tagger(self, name: str) -> Tagger:
        """Load one client's model that tags the words of sentences.

        Raises:
            RunError: There is no such client, or its model is of another kind.
        """
        from trifed.federation.tagger import load_tagger

        return load_tagger(self.path / "clients" / name)

    def _repr_html_(self) -> str:
        """Render for a notebook: the result in a sentence, and methods and controls side by side."""
        from trifed.reports.read import read_source
        from trifed.reports.report import render_brief

        return render_brief(read_source(self.path))
