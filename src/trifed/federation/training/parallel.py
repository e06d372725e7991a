"""Threads that train or score clients at the same time, each on its share of the cores, over one frozen base.

The operations of a small batch do not fill several cores: two clients on one core each take less time than one
after the other on both.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import TypeVar

import torch

from trifed.federation.training.shared_model import SharedModel, named_parameters

MIXED_GROUPS = 4
"""Groups for each thread whose results are taken together."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class StoppedError(Exception):
    """Training was given up because another thread failed, or because the program is interrupted."""


@dataclass(frozen=True)
class AtOnce:
    """The number of threads that train clients, and of clients in each forward and backward pass.

    Attributes:
        threads: Threads that train clients.
        clients: Clients that share one forward and backward pass in each thread.
    """

    threads: int = 1
    clients: int = 1

    @property
    def asked_together(self) -> int:
        """Clients that a simulation asks before it takes their results: several groups mix long and short ones."""
        together = self.threads * self.clients
        return 1 if together == 1 else MIXED_GROUPS * together

    def groups(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        """Split items into groups of at most `clients` each, of nearly equal sizes, enough for all threads."""
        count = ceil(ceil(len(items) / self.clients) / self.threads) * self.threads
        count = min(count, len(items))
        ends = [len(items) * place // count for place in range(count + 1)] if count else []
        return [items[first:end] for first, end in pairwise(ends)]


def replica(shared_model: SharedModel) -> SharedModel:
    """Return a shared model with trained tensors of its own; the frozen weights are the same tensors."""
    trained = {id(param) for param in shared_model.parameters.values()}
    same = {id(param): param for param in shared_model.model.parameters() if id(param) not in trained}
    model = copy.deepcopy(shared_model.model, same)
    own = named_parameters(model, shared_model.settings.pooling)
    return replace(
        shared_model,
        model=model,
        encoder=copy.deepcopy(shared_model.encoder, same),  # the one in `model`, by deepcopy's memo
        parameters={name: own[name] for name in shared_model.parameters},
        frozen={name: own[name] for name in shared_model.frozen},
    )


def in_threads(
    shared_model: SharedModel,
    groups: Sequence[Item],
    train: Callable[[SharedModel, Item, threading.Event], Result],
    threads: int,
) -> list[Result]:
    """Train or score the groups in threads, which take one after the other; return the results in their order.

    Args:
        shared_model: The model; each thread has a replica of it.
        groups: What `train` takes.
        train: Trains one group with a thread's model. It gives up with `StoppedError` when the event is set.
        threads: The number of threads; they share out the cores that torch may use. With 1, no thread is started.

    Raises:
        Exception: Whatever the first `train` that failed raised; the others give up.
    """
    if threads == 1:
        return [train(shared_model, group, threading.Event()) for group in groups]
    cores = torch.get_num_threads()
    while len(shared_model.replicas) < threads:
        shared_model.replicas.append(replica(shared_model))
    todo = deque(enumerate(groups))
    results: dict[int, Result] = {}
    stop = threading.Event()

    def work(model: SharedModel) -> None:
        torch.set_num_threads(max(1, cores // threads))
        while todo and not stop.is_set():
            try:
                place, group = todo.popleft()
            except IndexError:  # another thread took the last one
                return
            results[place] = train(model, group, stop)

    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="training") as pool:
            running = [pool.submit(work, model) for model in shared_model.replicas[:threads]]
            try:
                for future in wait(running, return_when=FIRST_EXCEPTION).done:
                    future.result()
            finally:
                stop.set()  # after an error or an interruption, for the threads that still train
    finally:
        torch.set_num_threads(cores)  # MKL has one number for the whole process, which the threads have changed
    return [results[place] for place in range(len(groups))]
