"""All methods that can be named: those of this package, of installed packages, of files and of a session.

A method from outside comes by an entry point of the group `trifed.methods`, by `register_method` from Python, or
from a file that defines `METHOD`. Between sites a server can name a method, never send one: both sides compare
`code_hash`.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import iter_modules
from types import FunctionType, MethodType, ModuleType
from typing import Any

from trifed.common.errors import ConfigError, nearest
from trifed.methods.base import Method
from trifed.methods.local import ALONE
from trifed.methods.personalization import EXAMPLES_OF_NAMES

GROUP = "trifed.methods"
FILES = "TRIFED_METHOD_FILES"
"""Environment variable: files of methods, separated as in PATH, that every process of a command loads."""
BUILT_IN = "trifed"


@dataclass(frozen=True)
class Origin:
    """Where a method comes from: `kind` is "trifed", "package", "file" or "python", `place` names it."""

    kind: str
    place: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.place}".strip()


METHODS: dict[str, Method] = {}
"""Every method that a run can name, by its name."""

ORIGINS: dict[str, Origin] = {}
"""Where each method that is not of this package comes from."""

BROKEN: dict[str, str] = {}
"""Entry points that could not be loaded: name → reason."""


def register_method(method: Method, *, replace: bool = False, origin: Origin = Origin("python")) -> Method:
    """Make a method known under its name, to this process.

    Args:
        method: The method.
        replace: Allow to replace a method that was registered before, as when a notebook cell runs again. A method
            of this package is never replaced.
        origin: Where the method comes from.

    Raises:
        ConfigError: not a `Method`, or its name is taken.
    """
    if not isinstance(method, Method):
        raise ConfigError([f"got {type(method).__name__}, expected a trifed.methods.Method"], str(origin))
    if method.name in METHODS and not (replace and method.name in ORIGINS):
        taken = ORIGINS.get(method.name, Origin(BUILT_IN))
        way_out = "pass replace=True to replace it" if method.name in ORIGINS else "give it another name"
        raise ConfigError([f"method '{method.name}' exists already, from {taken}; {way_out}"], str(origin))
    if method.name == ALONE:
        meaning = "is the name of a run's method with nothing shared"
        raise ConfigError([f"method '{ALONE}' {meaning}; give it another name"], str(origin))
    METHODS[method.name] = method
    ORIGINS[method.name] = origin
    return method


def load_method_file(path: Path) -> Method:
    """Run a Python file that defines `METHOD`, and register that method.

    Raises:
        ConfigError: no such file, the file fails, or it defines no `METHOD`.
    """
    if not path.is_file():
        raise ConfigError(
            [f"no such file; expected a Python file that defines METHOD, got {path}"], "--method-file"
        )
    spec = spec_from_file_location(f"trifed_method_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError([f"{path}: not a Python file; its name has to end in .py"], "--method-file")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except LOADING_ERRORS as error:
        raise ConfigError(
            [f"{path}: cannot be loaded ({type(error).__name__}: {error})"], "--method-file"
        ) from error
    method = getattr(module, "METHOD", None)
    if not isinstance(method, Method):
        raise ConfigError(
            [f"{path}: defines no METHOD; expected METHOD = trifed.methods.Method(...)"], "--method-file"
        )
    return register_method(method, replace=True, origin=Origin("file", path.name))


def use_method_files(paths: Sequence[Path]) -> list[Method]:
    """Load files of methods in this process, and in every process that it starts.

    Raises:
        ConfigError: as `load_method_file`.
    """
    found = [load_method_file(path) for path in paths]
    if paths:
        os.environ[FILES] = os.pathsep.join(str(path.resolve()) for path in paths)
    return found


def unknown_method(name: str) -> str:
    """Return a sentence for a method that is not known here."""
    if name in BROKEN:
        return f"got '{name}', which is installed and cannot be loaded: {BROKEN[name]}"
    known = ", ".join(METHODS)
    return f"got '{name}', expected one of {known}{nearest(name, METHODS)}; --method-file adds one from a file"


def code_hash(method: Method) -> str:
    """Return 16 hex digits over the source files of a method's functions and its turns; sites compare it."""
    digest = hashlib.sha256(method.name.encode())
    for source in sorted(set(_sources(method))):
        digest.update(source.encode())
    return digest.hexdigest()[:16]


def _sources(method: Method) -> Iterator[str]:
    for each in (method, *([method.preset_of] if method.preset_of else [])):
        for field in fields(each):
            value = getattr(each, field.name)
            for part in value if isinstance(value, tuple) else (value,):
                yield from _source(part)
        # The order of the turns is in no single function's source.
        for place, turn in enumerate(each.turns):
            yield f"turn {place} {[bool(turn(name)) for name in EXAMPLES_OF_NAMES]}"


def _source(value: Any) -> Iterator[str]:
    """Yield the text of the file that defines a function or class; the function's code where there is no file."""
    defined = value.__func__ if isinstance(value, MethodType) else value
    if not isinstance(defined, FunctionType | type):
        defined = type(defined) if callable(defined) else None
    if defined is None:
        return
    code = getattr(defined, "__code__", None)
    try:
        # Python 3.13 gives the text of `python -c` as the source of every function that `exec` made.
        if code and code.co_filename == "<string>":
            raise OSError("no source")
        path = inspect.getsourcefile(defined)
        yield (
            Path(path).read_text(encoding="utf-8") if path and Path(path).is_file() else inspect.getsource(defined)
        )
    except (OSError, TypeError):
        yield f"{code.co_code.hex()} {code.co_consts}" if code else repr(defined)


def _built_in() -> Iterator[Method]:
    for module in iter_modules([str(Path(__file__).parent)]):
        if module.name != "registry":
            method = getattr(import_module(f"trifed.methods.{module.name}"), "METHOD", None)
            if isinstance(method, Method):
                yield method


def _load_entry_point(entry: EntryPoint) -> None:
    package = entry.dist.name if entry.dist else entry.value
    try:
        loaded = entry.load()
        method = loaded.METHOD if isinstance(loaded, ModuleType) else loaded
        register_method(method, origin=Origin("package", f"{package} {entry.dist.version if entry.dist else ''}"))
    except LOADING_ERRORS as error:
        BROKEN[entry.name] = f"{type(error).__name__} in {entry.value}: {error}"


LOADING_ERRORS = (ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError, OSError, ConfigError)
"""Errors that a method from outside may raise while it is loaded."""


def load_methods_from_outside() -> None:
    """Load the methods of installed packages, and of the files that the parent process was given.

    Called at the end of `trifed.methods`, all names of which such a file or package may import.
    """
    for entry in entry_points(group=GROUP):
        _load_entry_point(entry)
    for file in filter(None, os.environ.get(FILES, "").split(os.pathsep)):
        load_method_file(Path(file))


METHODS.update(sorted((method.name, method) for method in _built_in()))
