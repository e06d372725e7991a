"""Writes docs/reference/ from the docstrings in src/trifed: `python docs/generate.py`, or `make docs`.

The source is read, not imported. With a folder as argument the pages are written there instead.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]

PAGES = {
    "trifed": ("trifed", None),
    "adapters": ("trifed.adapters", None),
    "similarity": ("trifed.similarity", None),
    "methods": ("trifed.methods.interface", None),
    "privacy": ("trifed.privacy", None),
    "costs": ("trifed.federation.cost", ("estimate_cost", "Cost", "MethodCost", "Once")),
    "tracking": ("trifed.tracking", ("track", "Tracked")),
    "errors": ("trifed.errors", None),
}
"""Page → module, and which of its names; None for all that it offers."""

NOTE = "Generated from the docstrings by `make docs`; change those, not this page."


def main(target: Path) -> None:
    """Write all pages, and take away what is no page any more."""
    package = griffe.load("trifed", search_paths=[ROOT / "src"], docstring_parser="google")
    pages = {}
    contents = ["# Reference", "", NOTE, ""]
    for page, (module_name, names) in PAGES.items():
        module = package if module_name == package.path else package[module_name.removeprefix("trifed.")]
        lines = [f"# {module_name}", "", NOTE, "", *docstring(module)]
        shown = [module[name] for name in names or offered(module)]
        for item in sorted(shown, key=lambda item: (not item.is_class, item.name)):
            lines += ["", *described(item, "##")]
        if page == "methods":
            lines += ["", *methods(module.parent)]
        pages[page] = tidy(lines)
        listed = ", ".join(f"`{item.name}`" for item in shown)
        contents.append(f"- [{module_name}]({page}.md): {listed}")
    pages["README"] = tidy(contents)
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.md"):
        old.unlink()
    for page, text in pages.items():
        (target / f"{page}.md").write_text(text, encoding="utf-8")


def tidy(lines: list[str]) -> str:
    """One file: no two blank lines in a row, and none of the marks that only reStructuredText reads."""
    text = "\n".join(line.rstrip() for line in lines if line.strip() != "::")
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def methods(package: griffe.Object | griffe.Alias) -> Iterator[str]:
    """What each method's file says of itself."""
    yield "# The methods"
    for _, module in sorted(package.modules.items()):
        if "METHOD" in module.members:
            call = module["METHOD"].value
            name = next(str(argument.value) for argument in call.arguments if argument.name == "name")
            yield from ("", f"## {name.strip(chr(39))}", "", *docstring(module))
            yield from (line for item in own_options(module) for line in ["", *described(item, "###")])


def own_options(module: griffe.Object | griffe.Alias) -> list[griffe.Object | griffe.Alias]:
    """The method's options, where it has some."""
    return [item for item in module.members.values() if not item.is_alias and item.is_class]


def offered(module: griffe.Object) -> list[str]:
    """What a module names in `__all__`; else its own public classes and functions."""
    if module.exports:
        return [str(name) for name in module.exports if not str(name).startswith("_")]
    own = (item for name, item in module.members.items() if not name.startswith("_") and not item.is_alias)
    return [item.name for item in own if item.is_class or item.is_function]


def described(item: griffe.Object | griffe.Alias, level: str) -> Iterator[str]:
    """A heading, the signature, the docstring; of a class also its fields and methods."""
    yield f"{level} {item.name}"
    yield ""
    yield from ("```python", *signature(item), "```", "")
    yield from docstring(item)
    if item.is_class:
        for name, member in item.members.items():
            if member.is_function and not name.startswith("_") and member.docstring:
                yield ""
                yield from described(member, level + "#")


def signature(item: griffe.Object | griffe.Alias) -> Iterator[str]:
    """As it stands in the source, without its body."""
    if item.is_function:
        if "property" in item.labels:
            yield f"{item.name}: {item.returns}"
            return
        kept = [
            decorator for decorator in item.decorators if str(decorator.value) in ("classmethod", "staticmethod")
        ]
        yield from (f"@{decorator.value}" for decorator in kept)
        yield item.signature(return_type=True)
    elif item.is_class:
        bases = f"({', '.join(map(str, item.bases))})" if item.bases else ""
        yield f"class {item.name}{bases}:"
        yield from [f"    {line}" for line in fields(item)] or ["    ..."]
    else:
        yield f"{item.name}: {item.annotation}" if item.annotation else f"{item.name} = {item.value}"


def fields(item: griffe.Object | griffe.Alias) -> Iterator[str]:
    """Annotated public attributes of a class, with their defaults; and its properties."""
    for name, member in item.members.items():
        if name.startswith("_") or not member.is_attribute:
            continue
        if "property" in member.labels:
            yield f"{name}: {member.annotation}  # property"
        elif member.annotation is not None:
            yield f"{name}: {member.annotation}" + (f" = {member.value}" if member.value is not None else "")


def docstring(item: griffe.Object | griffe.Alias) -> Iterator[str]:
    """The text, with what is raised as a list."""
    for section in item.docstring.parsed if item.docstring else []:
        if section.kind is griffe.DocstringSectionKind.text:
            yield from [*section.value.splitlines(), ""]
        elif section.kind is griffe.DocstringSectionKind.raises:
            yield from ["Raises:", ""]
            yield from (
                f"- `{entry.annotation}`: {' '.join(entry.description.split())}" for entry in section.value
            )
            yield ""
        else:
            raise ValueError(
                f"{item.path}: a docstring section '{section.kind.value}' that this script cannot write"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "reference")
