"""Hooks of the documentation site: add the pages that are not in `docs/`, and adapt the links between pages.

MkDocs imports this file (`hooks` in mkdocs.yml). It adds:

- copies of the repository's own Markdown files, listed in `COPIED`;
- `reference/*.md`: Python modules for mkdocstrings, the settings, and the commands.

The header shows the version of the package that is imported.

Links in Markdown files are written for the repository. In the site, a link to a file that has a page leads to that
page. Any other link leads to `repo_url` if mkdocs.yml sets one; otherwise only its text is kept.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import typer
from click import Argument, Command, Group
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

COPIED = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security-policy.md": "SECURITY.md",
    "benchmarks/index.md": "benchmarks/README.md",
    **{
        f"benchmarks/{folder}.md": f"benchmarks/{folder}/README.md"
        for folder in (
            "collaboration",
            "evidence",
            "flower",
            "large_model",
            "methods",
            "models",
            "privacy",
            "same_numbers",
            "similarity",
            "speed",
            "step_time",
            "three_methods",
        )
    },
    "demo-corpus.md": "src/trifed/data/demo/README.md",
}
"""Page of the site → file of the repository."""

MODULES = {
    "adapters": "trifed.adapters",
    "similarity": "trifed.similarity",
    "privacy": "trifed.privacy",
    "costs": "trifed.federation.cost",
    "tracking": "trifed.reports.tracking",
    "errors": "trifed.common.errors",
}
"""Page of the reference → the module it documents."""

PARTS_OF_METHODS = {
    "Parts of a method": "trifed.methods.base",
    "Server parts for any method": "trifed.methods.aggregation",
    "Personalization for any method": "trifed.methods.personalization",
}
"""Section at the end of the page of methods → the module it documents."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
"""A Markdown link or picture: `!` of a picture, text, target, anchor. The text may contain brackets."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show the version in the header. A build documents one version; keep each release in a folder of its own."""
    config.site_name = f"{config.site_name} {importlib.import_module('trifed').__version__}"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in `docs/`, and the pictures they show."""
    for page, source in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
        for picture in pictures(text, source):
            if not picture.startswith("docs/"):
                files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    for page, text in reference().items():
        files.append(File.generated(config, f"reference/{page}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    if here.startswith("reference/"):
        return markdown
    source = COPIED.get(here, f"docs/{here}")

    def rewritten(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.group(1), link.group(2), link.group(3), link.group(4) or ""
        if "://" in target:
            return link.group(0)
        path = in_repository(source, target)
        found = page_of(path)
        if files.get_file_from_path(found) is not None:
            return f"{mark}[{text}]({os.path.relpath(found, PurePosixPath(here).parent)}{anchor})"
        if not (ROOT / path).exists():
            return link.group(0)  # MkDocs reports it
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"
        return text

    return LINK.sub(rewritten, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Return a page on whose narrow form the keyboard reaches the buttons for the menu and for the search.

    The theme draws both as labels without a place in the order of the keyboard; its script opens them on Enter.
    """
    for target, name in (("__drawer", "Menu"), ("__search", "Search")):
        label = f'<label class="md-header__button md-icon" for="{target}"'
        if output.count(label) != 1:
            raise PluginError(f"{page.file.src_uri}: got {output.count(label)} times {label}, expected it once")
        output = output.replace(label, f'{label} tabindex="0" role="button" aria-label="{name}"')
    return output


def in_repository(source: str, target: str) -> str:
    """Path of a link's target from the root of the repository; `source` is the file with the link."""
    return os.path.normpath(PurePosixPath(source).parent / target)


def page_of(path: str) -> str:
    """Path in the site of a file of the repository."""
    pages = {source: page for page, source in COPIED.items()}
    return pages.get(path) or pages.get(f"{path}/README.md") or path.removeprefix("docs/")


def pictures(text: str, source: str) -> list[str]:
    """Paths, from the root of the repository, of the pictures that a Markdown text shows."""
    return [in_repository(source, link.group(3)) for link in LINK.finditer(text) if link.group(1)]


def reference() -> dict[str, str]:
    """Name of each reference page → its Markdown."""
    pages = {name: f"# {module}\n\n::: {module}\n" for name, module in MODULES.items()}
    return {
        "trifed": "\n".join(python_interface()),
        "methods": "\n".join(methods()),
        "settings": "\n".join(settings()),
        "commands": "\n".join(commands()),
        **pages,
    }


def python_interface() -> Iterator[str]:
    """Everything that `import trifed` offers."""
    trifed = importlib.import_module("trifed")
    yield from (
        "# trifed",
        "",
        "The names that can be imported from `trifed`. They are loaded when first used.",
        "",
    )
    for name in sorted(trifed.__all__, key=str.lower):
        if not name.startswith("__"):
            yield from (f"::: trifed.{name}", "    options: {show_root_heading: true, heading_level: 2}", "")


def methods() -> Iterator[str]:
    """Describe each method by the docstring of its file and its own options, then the classes they share."""
    package = importlib.import_module("trifed.methods")
    yield from ("# Methods", "", "Each method's paper, equations and options.")
    yield from ("[Methods in one line](../methods.md) says when to use which.", "")
    for entry in pkgutil.iter_modules(package.__path__, "trifed.methods."):
        module = importlib.import_module(entry.name)
        if hasattr(module, "METHOD"):
            yield from (f"## {module.METHOD.name}", "", f"::: {entry.name}", "    options: {heading_level: 3}", "")
    for title, name in PARTS_OF_METHODS.items():
        yield from (f"## {title}", "", f"::: {name}", "    options: {heading_level: 3}", "")


def settings() -> Iterator[str]:
    """List all settings, as `trifed settings` does, by the table of the TOML file they belong to."""
    table = importlib.import_module("trifed.reports.settings").render_settings()
    sections: dict[str, list[str]] = {}
    for name, default, meaning in zip(*(column.cells for column in table.columns), strict=True):
        row = f"| `{name}` | `{default}` | {cell(meaning)} |"
        sections.setdefault(name.rpartition(".")[0], []).append(row)
    yield from (
        "# Settings",
        "",
        "Every key of a run's TOML file and of `--set KEY=VALUE`, with its default and meaning.",
    )
    yield from ("A default of `-` means that the setting is unset.", "")
    for section, rows in sections.items():
        yield from (f"## [{section}]" if section else "## At the top of the file", "")
        yield from ("| setting | default | meaning |", "|---|---|---|", *rows, "")


def commands() -> Iterator[str]:
    """List every command with its help text, arguments and flags."""
    app = typer.main.get_command(importlib.import_module("trifed.cli.app").app)
    yield from (
        "# Commands",
        "",
        "Every command with its arguments, flags and defaults, as `--help` prints them.",
        "",
    )
    yield from described(app, "trifed", 2)


def described(command: Command, name: str, level: int) -> Iterator[str]:
    """Describe one command and those below it."""
    if name != "trifed":
        yield from (f"{'#' * level} {name}", "")
        level += 1
    yield from help_text(command.help or "")
    rows = [row for parameter in command.params if (row := parameter_row(parameter))]
    if rows and name != "trifed":
        yield from ("| argument or flag | default | meaning |", "|---|---|---|", *rows, "")
    if isinstance(command, Group):
        for child in command.commands.values():
            yield from described(child, f"{name} {child.name}", level)


def help_text(text: str) -> Iterator[str]:
    """Turn a help text with Rich's markup into Markdown; indented lines become code."""
    code = False
    for line in text.replace("\\[", "[").splitlines():
        line = line.replace("\b", "")
        indented = line.startswith("  ")
        if indented != code and (line.strip() or not code):
            yield from ("```",) if indented else ("```", "")
            code = indented
        yield line[2:] if code else re.sub(r"\[bold\](.*?)\[/bold\]", r"**\1**", line)
    yield from ("```", "") if code else ("",)


def parameter_row(parameter: Any) -> str | None:
    """Describe one argument or flag in a table's row; None for `--help` and hidden ones."""
    if parameter.name == "help" or getattr(parameter, "hidden", False):
        return None
    is_argument = isinstance(parameter, Argument)
    names = [parameter.make_metavar(None)] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    default = (
        "" if parameter.default in (None, (), []) or callable(parameter.default) else f"`{parameter.default}`"
    )
    shown = ", ".join(f"`{name}`" for name in names)
    return f"| {shown} | {default} | {cell(parameter.help or '')} |"


def cell(text: str) -> str:
    """Make a text safe for a table's cell."""
    plain = re.sub(r"\[/?bold\]", "", text.replace("\\[", "["))
    return " ".join(plain.split()).replace("|", "\\|").replace("<", "&lt;")
