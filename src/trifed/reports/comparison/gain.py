"""The picture and the three sentences at the end of the demo: gain of each site, bytes sent, and the next step."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trifed.common.files import whole_file
from trifed.federation.compression import Quantise
from trifed.federation.messages import Header, encode_values
from trifed.reports.comparison.plots import MOST_NAMED
from trifed.reports.comparison.worth import Worth, sent_clause
from trifed.reports.figures import LIGHT, NotebookFigure, drawing, short
from trifed.reports.format import percent, plural, points, size
from trifed.reports.results import Partition

HEIGHT, ROW, ROWS = 1.3, 0.28, 8.0
"""Inches of the picture without its rows, inches of one row, and the most inches of all rows."""
FEDERATED, ALONE = LIGHT.series[0], "#8b939b"
DEFAULT, PLAIN = "own-prior", "fedavg-lora"


def beside_plain_lora(partition: Partition) -> bool:
    """Return whether a method other than plain LoRA has the bytes of plain LoRA for comparison."""
    methods = partition.methods.items()
    return any(name != PLAIN and method.fedavg_lora_would_send for name, method in methods)


def write_gain(partition: Partition, worth: Worth, target: Path) -> None:
    """Write the picture of what a run gained as a PNG file."""
    figure = gain_figure(partition, worth)
    with drawing(LIGHT), whole_file(target) as partial:
        figure.savefig(partial, dpi=200, format="png")


def gain_figure(partition: Partition, worth: Worth) -> Figure:
    """Return two bars for each site, separate and federated, beside the bytes that a site sends in a round.

    Args:
        partition: The results; the metric that decides is accuracy.
        worth: The two methods of the bars.
    """
    with drawing(LIGHT):
        height = HEIGHT + min(ROWS, ROW * len(worth.gains))
        figure = NotebookFigure(figsize=(7.0, height), layout="constrained")
        sites, sent = figure.subplots(1, 2, width_ratios=(1.7, 1))
        _sites(sites, partition, worth)
        _sent(sent, partition, worth)
    return figure


def _sites(axes: Axes, partition: Partition, worth: Worth) -> None:
    """Draw two bars for each site, the largest gain on top."""
    order = sorted(worth.gains, key=lambda name: -worth.gains[name])
    kinds = {"separate training": (-0.2, worth.alone, ALONE), "federated": (0.2, worth.shared, FEDERATED)}
    for label, (shift, method, colour) in kinds.items():
        known = dict(zip(partition.clients, partition.methods[method].client_accuracy, strict=True))
        places = [place + shift for place in range(len(order))]
        axes.barh(places, [100 * (known[name] or 0.0) for name in order], 0.38, color=colour, label=label)
    named = order if len(order) <= MOST_NAMED else []
    axes.set_yticks(range(len(named)), map(short, named))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(order) - 0.45, -0.55)
    axes.set(xlim=(0, 100), xlabel=f"test {worth.metric}, %")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=11)


def _sent(axes: Axes, partition: Partition, worth: Worth) -> None:
    """Draw the bytes of a round: what a site sends, beside plain federated LoRA if that was run as well.

    Plain LoRA was run with 32 bits a number and the default method with one, so that a third bar is needed for
    equal bits.
    """
    plain = partition.methods.get(PLAIN)
    bars = [("trifed" if worth.shared == DEFAULT else worth.shared, worth.up_per_round, FEDERATED)]
    if worth.shared == DEFAULT and plain is not None and plain.bytes.up_per_round:
        bars = [
            ("trifed,\n1 bit", worth.up_per_round, FEDERATED),
            ("plain\nLoRA,\n1 bit", at_one_bit(plain.bytes.up_per_round), LIGHT.series[3]),
            ("plain\nLoRA,\n32 bits", plain.bytes.up_per_round, LIGHT.series[3]),
        ]
    axes.bar(range(len(bars)), [count for _, count, _ in bars], 0.55, color=[colour for *_, colour in bars])
    for place, (_, count, _) in enumerate(bars):
        axes.annotate(size(count), (place, count), (0, 3), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(bars)), [label for label, *_ in bars])
    axes.set_xlim(-0.6, len(bars) - 0.4)
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title("sent by each site\nin a round", fontsize=11)


def at_one_bit(sent: float) -> float:
    """Return the bytes of an upload with one bit a number, given its bytes with 32 bits a number.

    The numbers count as one tensor: each further tensor adds less than a block's step size, two bytes.
    """
    header = Header("upload", "0" * 12, "0" * 16, 10, 10, 100)
    empty = np.zeros(0, np.float32)
    numbers = np.zeros(max(0, round(sent) - len(encode_values(header, empty))) // 4, np.float32)
    return len(Quantise((("numbers", numbers.shape),), 1).encode(header, numbers, numbers))


def closing_sentences(worth: Worth, run: Path) -> list[str]:
    """Return what federating gained, what left each site, and what to do next; for the end of the demo.

    Args:
        worth: The method that shares beside the best one that sends nothing; its metric is a share.
        run: The run's folder.
    """
    better = f"{len(worth.better)} of {plural(worth.clients, 'site')} are better off"
    size_of_gain = f"{percent(abs(worth.gain))} points of test {worth.metric}"
    result = {
        "gain": f"gained {size_of_gain} over separate training",
        "loss": f"lost {size_of_gain} against separate training",
        "unclear": f"gained nothing that is clear ({points(worth.gain)} points of test {worth.metric})",
    }[worth.kind]
    return [
        f"Federating {result}; {better}.",
        f"Only numbers left the sites, no example: {sent_clause(worth.up_per_round, worth.once_up)}; "
        f"trifed audit {shlex.quote(str(run))} shows what an attacker could learn from them.",
        "With your own table: "
        "trifed run --data TABLE.csv --text TEXT_COLUMN --label LABEL_COLUMN --split column --column SITE_COLUMN",
    ]
