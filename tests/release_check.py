"""Build a release, install it with pip as users do, and use it: `make release-check`.

    make release-check                                                          # every extra, on python3
    python3.13 tests/release_check.py --extras demo flower --dist /tmp/dist     # two of them, on another Python

Writes sdist and wheel to `dist/`. Needs pip's package index and several GB for a while, takes ten minutes or more,
and imports nothing that has to be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TORCH = r"pip install (torch==[\d.]+)"
"""The README's first line of installation."""
RUN = "run --data tickets.csv --split column --column site --rounds 1 --no-baselines --name tickets"
SERVER_RUN = (
    'name = "tickets"\n[model]\nname = "demo"\n[data]\nlabels = ["billing", "login"]\n[deployment]\nclients = 2\n'
)
WORKBOOK = (
    "import openpyxl; made = openpyxl.Workbook(); made.active.append(['text', 'label']); made.save('made.xlsx')"
)
SHEET = "from pathlib import Path; from trifed.data.excel import read_sheet; read_sheet(Path('made.xlsx'), None)"
USES = {
    "demo": ("trifed " + RUN, "trifed report runs/tickets"),
    "flower": ("trifed flower init server --run run.toml --host localhost", "trifed-supernode --help"),
    "excel": (f"python {WORKBOOK}", f"python {SHEET}"),
    "tensorboard": ("trifed track runs/tickets --to tensorboard",),
    "mlflow": ("trifed track runs/tickets --to mlflow",),
    "wandb": ("trifed track runs/tickets --to wandb",),
    "quantized": ("python import bitsandbytes",),
}
"""For each extra, commands that need it. One of Python is followed by its code."""
REFUSED = {
    "demo": "trifed " + RUN,
    "flower": "trifed flower init none --run run.toml --host localhost",
    "excel": "trifed run --data tickets.xlsx --dry-run",
    "tensorboard": "trifed track runs/tickets --to tensorboard",
    "mlflow": "trifed track runs/tickets --to mlflow",
    "wandb": "trifed track runs/tickets --to wandb",
    "quantized": f"trifed {RUN} --set model.dtype=int8 --dry-run",
}
"""For each extra, a command that names it where it is not installed."""


def call(*words: str | Path, code: int = 0, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Return the output of a command, standard error included.

    Raises:
        SystemExit: Its exit code is not `code`.
    """
    done = subprocess.run(
        [str(word) for word in words],
        text=True,
        check=False,
        timeout=1800,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=env,
    )
    if done.returncode != code:
        raise SystemExit(f"{words}: exit code {done.returncode}, expected {code}\n{done.stdout}")
    return done.stdout.strip()


def copy_project(target: Path) -> Path:
    """Copy what a release is made of, because a build writes into its folder."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(REPOSITORY / "src", target / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPOSITORY / name, target / name)
    return target


class Environment:
    """A virtual environment; one made by `on` sees the packages of another and adds its own."""

    def __init__(self, home: Path, python: str | Path = sys.executable, *, pip: bool = True) -> None:
        call(python, "-m", "venv", *([] if pip else ["--without-pip"]), home)
        self.home = home
        self.python = home / "bin" / "python"
        self.site = Path(call(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))

    @classmethod
    def on(cls, sites: Sequence[Path], home: Path, python: str | Path = sys.executable) -> Environment:
        """Make an environment without pip that sees the packages in other environments' `sites`."""
        made = cls(home, python, pip=False)
        (made.site / "others.pth").write_text("".join(f"{site}\n" for site in sites), encoding="utf-8")
        return made

    def install(self, *words: str | Path, pip: Path | None = None) -> None:
        """Install into this environment, with its own pip or with that of another one's Python."""
        program = ["-m", "pip", "--quiet", "--disable-pip-version-check", "--python", self.python]
        call(pip or self.python, *program, "install", *words)


def build(folder: Path, dist: Path) -> Path:
    """Write sdist and wheel to `dist`, check their metadata, and return the wheel."""
    tools = Environment(folder / "tools")
    tools.install("build", "twine")
    shutil.rmtree(dist, ignore_errors=True)
    call(tools.python, "-m", "build", "--outdir", dist, copy_project(folder / "project"))
    call(tools.python, "-m", "twine", "check", "--strict", *dist.iterdir())
    (wheel,) = dist.glob("*.whl")
    return wheel


class Check:
    """One folder outside the repository in which commands of installed environments are run."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        shutil.copy(REPOSITORY / "examples" / "tickets.csv", self.work)
        shutil.copy(REPOSITORY / "examples" / "tickets.csv", self.work / "tickets.xlsx")
        (self.work / "run.toml").write_text(SERVER_RUN, encoding="utf-8")
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.env = {**kept, "COLUMNS": "400", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
        self.folder = folder
        self.wheel = wheel
        self.base = Environment(folder / "base")

    def do(self, environment: Environment, line: str, code: int = 0) -> str:
        """Run a line of `USES` or `REFUSED` and return its output."""
        name, _, rest = line.partition(" ")
        words = ["-W", "error", "-c", rest] if name == "python" else [self.base.home / "bin" / name, *rest.split()]
        return call(environment.python, *words, code=code, cwd=self.work, env=self.env)

    def plain(self) -> None:
        """Install torch and the wheel, as the README does, without an extra."""
        (torch,) = set(re.findall(TORCH, (REPOSITORY / "README.md").read_text(encoding="utf-8")))
        self.base.install(torch)
        self.base.install(self.wheel)
        call(self.base.python, "-m", "pip", "check")
        version = self.do(self.base, "python import trifed; print(trifed.__version__)")
        assert self.wheel.name.startswith(f"trifed-{version}-"), version
        assert version in self.do(self.base, "trifed --version")
        self.do(self.base, "trifed doctor")

    def extra(self, name: str, seen: Sequence[Path]) -> Environment:
        """Use one extra: first without it, then with nothing but it and what `seen` has."""
        made = Environment.on([*seen, self.base.site], self.folder / name)
        refusal = self.do(made, REFUSED[name], code=2)
        assert f"'.[{name}]'" in refusal and "Traceback" not in refusal, refusal
        made.install(f"trifed[{name}] @ {self.wheel.as_uri()}", pip=self.base.python)
        call(self.base.python, "-m", "pip", "--python", made.python, "check")
        found = json.loads(self.do(made, "trifed doctor --json"))
        states = {check["name"]: check["state"] for check in found["checks"]}
        assert states["packages"] == states[f"extra {name}"] == "ok", found
        for line in USES[name]:
            self.do(made, line)
        return made


def main() -> None:
    """Build, install and use; the first thing that fails ends the program with its output."""
    parser = argparse.ArgumentParser(description="Build a release, install it with pip, and use it.")
    parser.add_argument("--extras", nargs="+", choices=list(USES), default=list(USES))
    parser.add_argument("--dist", type=Path, default=REPOSITORY / "dist", help="Where sdist and wheel go.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trifed-release-") as place:
        folder = Path(place)
        check = Check(folder, build(folder, options.dist.resolve()))
        print(f"built {check.wheel.name}", flush=True)
        check.plain()
        print(f"installed on Python {sys.version.split()[0]}, without an extra", flush=True)
        seen: list[Path] = []
        for name in dict.fromkeys(["demo", *options.extras]):  # the others use the run that demo trains
            made = check.extra(name, seen)
            seen = [made.site] if name == "demo" else seen
            print(f"extra {name}: refused without it, works with it", flush=True)


if __name__ == "__main__":
    main()
