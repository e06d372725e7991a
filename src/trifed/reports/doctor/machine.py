"""Check this machine: versions, extras, devices, memory and disks."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from trifed.common.version import __version__
from trifed.reports.doctor import Check, State, attempt, judge
from trifed.reports.format import listing, plural, size

EXTRAS = {
    "demo": "the small pre-trained model of `trifed demo` and model.name = 'demo'",
    "tensorboard": "a run's curves in TensorBoard",
    "mlflow": "a run's curves in MLflow",
    "wandb": "a run's curves in Weights & Biases",
    "excel": "Excel files as data",
    "quantized": "base models in 8 or 4 bits (model.dtype = 'int8' or 'nf4')",
    "flower": "runs between sites (`trifed flower`)",
}
"""Extras for users, and what each gives."""
DRIVER = Path("/proc/driver/nvidia/version")
CUDA = "Install a build with CUDA, as https://pytorch.org/get-started/locally describes."
UPDATE = "Call nvidia-smi; update the driver, or install a torch build that fits it."
LITTLE, TOO_LITTLE = 2e9, 1e8
"""Free bytes of memory or disk below which a small run may fail, or will."""


def check_machine() -> Iterator[Check]:
    """Check versions, and what a run needs of the hardware."""
    yield from check_versions()
    yield from check_hardware()


def check_versions() -> Iterator[Check]:
    """Check the installed packages, and those of each extra, against what trifed asks for."""
    python = f"Python {platform.python_version()}"
    try:
        version, asked = metadata.version("trifed"), metadata.requires("trifed") or []
    except metadata.PackageNotFoundError:
        found = f"Version {__version__} runs from its source on {python}; no versions can be compared."
        yield Check("trifed", "skipped", found, "Install it: pip install .")
        return
    stale = f"The code is version {__version__}, but version {version} is installed."
    yield from judge(
        "trifed", f"Version {version}, {python}.", (version != __version__, "warning", stale, "Install it again.")
    )
    items = [Requirement(text) for text in asked]
    yield from check_packages([item for item in items if item.marker is None])
    for extra in EXTRAS:
        yield from check_packages([i for i in items if i.marker and i.marker.evaluate({"extra": extra})], extra)


def check_packages(items: Sequence[Requirement], extra: str = "") -> Iterator[Check]:
    """Check the versions of the packages that trifed needs, or of one extra."""
    versions = {item.name: _version(item.name) for item in items}
    missing = [item for item in items if not versions[item.name]]
    wrong = [i for i in items if i not in missing and not i.specifier.contains(versions[i.name], prereleases=True)]
    command = (
        f"pip install '.[{extra}]' in your copy of trifed's repository" if extra else _pip([*missing, *wrong])
    )
    states: tuple[State, State] = ("skipped", "warning") if extra else ("problem", "problem")
    gives = f" The extra gives {EXTRAS[extra]}." if extra else ""
    yield from judge(
        f"extra {extra}" if extra else "packages",
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.",
        (missing, states[0], f"Not installed: {listing([item.name for item in missing])}.{gives}", command),
        (wrong, states[1], f"Expected {listing([f'{i}, got {versions[i.name]}' for i in wrong])}.", command),
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _pip(items: Sequence[Requirement]) -> str:
    return f"pip install {' '.join(shlex.quote(str(item)) for item in items)}"


def check_hardware() -> Iterator[Check]:
    """Check the processor, memory, GPUs, and disks."""
    import torch

    from trifed.config.settings import TrainingSettings
    from trifed.federation.training.device_placement import choose_device, choose_precision

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        device = choose_device(TrainingSettings())
    precision = choose_precision(TrainingSettings(), device)
    cores = plural(os.cpu_count() or 1, "core")
    yield Check("device", "ok", f"Training uses {device} in {precision}; the processor has {cores}.")
    yield from check_gpus(torch.cuda, torch.version.cuda, [str(item.message) for item in heard])
    yield from check_memory(Path("/proc/meminfo"))
    yield from check_disk("current folder", Path.cwd())
    yield from check_disk("TMPDIR", Path(os.environ.get("TMPDIR", "/tmp")))


def check_gpus(cuda: Any, build: str | None, heard: Sequence[str]) -> Iterator[Check]:
    """List the GPUs that torch can use, or say why there is none.

    Args:
        cuda: `torch.cuda`.
        build: CUDA version of the torch build; None for a build without CUDA.
        heard: Warnings of torch.
    """
    for index in range(cuda.device_count()):
        free, total = map(size, cuda.mem_get_info(index))
        yield Check(f"cuda:{index}", "ok", f"{cuda.get_device_name(index)}; {free} of {total} are free.")
    if not cuda.device_count():
        wrong = DRIVER.exists() or bool(heard)
        reason = listing([text.splitlines()[0] for text in heard if text]) or "no reason given"
        yield from judge(
            "GPU",
            "None; training uses the processor.",
            (
                wrong and not build,
                "warning",
                "There is an NVIDIA driver, but this torch is built without CUDA.",
                CUDA,
            ),
            (wrong and build, "warning", f"torch, built for CUDA {build}, finds no usable GPU: {reason}.", UPDATE),
        )


def check_memory(known: Path) -> Iterator[Check]:
    """Check the free memory, on a system that reports it in a file."""
    found = re.search(r"MemAvailable: *(\d+) kB", known.read_text(encoding="utf-8")) if known.is_file() else None
    if found:
        free = int(found[1]) * 1024
        mend = "End other programs, or set model.dtype and training.micro_batch (docs/larger-models.md)."
        yield from judge(
            "memory", f"{size(free)} are free.", (free < LITTLE, "warning", f"{size(free)} are free.", mend)
        )


def check_disk(name: str, folder: Path) -> Iterator[Check]:
    """Check that a folder can be written and has free space. Nothing is written."""
    free = yield from attempt(name, partial(_free_space, folder), "", "Use another folder.")
    if free is not None:
        found, mend = f"{folder}: {size(free)} are free.", "Free some space, or use another disk."
        state: State = "problem" if free < TOO_LITTLE else "warning"
        yield from judge(name, found, (free < LITTLE, state, found, mend))


def _free_space(folder: Path) -> int:
    from trifed.federation.run_folder import refuse_unwritable

    refuse_unwritable(folder, "give it to your user")
    return shutil.disk_usage(folder).free
