"""Arguments and flags that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]
ModelFolder = Annotated[Path, typer.Argument(help="Folder of a run or of an exported model.", show_default=False)]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text or prompt.")]
PairColumn = Annotated[str | None, typer.Option(help="Column of the second text.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the image.")]
Tokens = Annotated[int, typer.Option(min=1, help="Largest number of tokens in an answer of a language model.")]
Base = Annotated[
    str | None, typer.Option(help="Folder or hub name of the base model, if it has moved since the run.")
]
MethodFile = Annotated[
    list[Path] | None,
    typer.Option("--method-file", metavar="FILE.py", help="Python file that defines METHOD; repeatable."),
]
Runs = Annotated[Path, typer.Option(help="Folder in which runs are kept.")]
