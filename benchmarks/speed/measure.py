"""Wall time, CPU time and memory of a command and of all processes that it starts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

INTERVAL = 0.2
"""Seconds from one look at the processes to the next."""
LEAST_RISE = 1.01
"""The memory is read again if resident sets have grown by this factor, so a peak is known to a hundredth."""
GRACE = 15.0
"""Seconds that processes may outlive the command before they are ended."""
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
        seconds: Wall time until the command ended.
        cpu_seconds: User and system time of all its processes.
        peak_mib: Largest sum over all its processes of their memory, MiB.
        memory: "PSS", which counts a shared page once, or "RSS" where the system does not tell it.
        processes: Largest number of processes at a time.
        other_cpu_seconds: CPU time of everything else on the machine; large where the machine was not quiet.
        steal_seconds: CPU time that a virtual machine was not given.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    memory: str
    processes: int
    other_cpu_seconds: float
    steal_seconds: float


@dataclass
class _Tree:
    """What was seen of the processes.

    Attributes:
        before: Processes that descend from this one but were there before.
        cpu: Seconds of each process by its number and start.
        resident: Largest sum of resident set sizes, bytes.
        peak: Largest sum of memory, bytes.
        most: Largest number of processes.
    """

    before: set[int]
    cpu: dict[tuple[int, float], float] = field(default_factory=dict)
    resident: int = 0
    peak: int = 0
    most: int = 0

    def look(self) -> None:
        """Note memory and CPU times of all processes."""
        resident, found = 0, self.processes()
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                times = process.cpu_times()
                self.cpu[process.pid, process.create_time()] = times.user + times.system
                resident += process.memory_info().rss
        self.most = max(self.most, len(found))
        # To read a large process's share takes 20 ms, in which it waits: only where there is more than before.
        if resident > self.resident * LEAST_RISE:
            self.resident = resident
            self.peak = max(self.peak, sum(map(_memory, found)))

    def processes(self) -> list[psutil.Process]:
        """Return the command and all that it has started."""
        return [child for child in psutil.Process().children(recursive=True) if child.pid not in self.before]


def measure(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Measured:
    """Run a command to its end and measure it with all that it starts.

    Processes that lose their parent become this process's children (on Linux), so none is missed.

    Raises:
        SystemExit: The command failed; the message gives the end of its output.
    """
    _adopt_orphans(True)
    tree = _Tree({child.pid for child in psutil.Process().children(recursive=True)})
    before, ours = psutil.cpu_times(), _own_cpu()
    waited = _cpu(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=dict(environment)
        )
        code, rest = None, INTERVAL
        while code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(rest)
            looked = time.perf_counter()
            tree.look()
            rest = max(0.01, INTERVAL - (time.perf_counter() - looked))
        seconds = looked - began
    _end_the_rest(tree)
    _adopt_orphans(False)
    # The times of ended processes are exact where somebody waited for them; otherwise the last look counts.
    cpu = max(sum(tree.cpu.values()), _cpu(resource.RUSAGE_CHILDREN) - waited)
    after, ours = psutil.cpu_times(), _own_cpu() - ours
    if code:
        raise SystemExit(
            f"{' '.join(command)}\nended with code {code}:\n{log.read_text(errors='replace')[-3000:]}"
        )
    others = max(0.0, _busy(after) - _busy(before) - cpu - ours)
    steal = getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)
    kind = "PSS" if sys.platform == "linux" else "RSS"
    return Measured(seconds, cpu, tree.peak / 2**20, kind, tree.most, others, steal)


def _adopt_orphans(on: bool) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, int(on), 0, 0, 0)


def _end_the_rest(tree: _Tree) -> None:
    """Wait for processes that outlived the command, and end them after a while."""
    _, alive = psutil.wait_procs(tree.processes(), GRACE)
    tree.look()
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, GRACE)


def _memory(process: psutil.Process) -> int:
    """Return a process's proportional set size in bytes, or its resident set size where there is none.

    0 for a process that has ended meanwhile.
    """
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError):
        if sys.platform != "linux":
            return int(process.memory_info().rss)
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return 0


def _cpu(whose: int) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def _own_cpu() -> float:
    times = os.times()
    return times.user + times.system


def _busy(times: object) -> float:
    names = ("user", "nice", "system", "irq", "softirq")
    return float(sum(getattr(times, name, 0.0) for name in names))
