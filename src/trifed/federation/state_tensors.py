"""A client's state as named tensors, which one safetensors file holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from trifed.common.errors import RunError
from trifed.methods.base import State

if TYPE_CHECKING:
    from torch import Tensor

    from trifed.federation.client_update import ClientState

# Functions import torch, so that a report of a run need not wait for it.


@contextmanager
def open_tensors(path: Path, way_out: str, framework: Literal["pt", "np"] = "pt") -> Iterator[Any]:
    """Open a safetensors file, and report damage that is found inside the block.

    Args:
        path: The file.
        way_out: What the user can do.
        framework: Kind of the tensors that are read, torch's or NumPy's; "np" does not import torch.

    Raises:
        RunError: The file is damaged.
    """
    try:
        with safe_open(path, framework) as file:
            yield file
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: damaged ({error}); {way_out}") from error


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, which safetensors refuses: clients that never trained share their start."""
    import torch

    uses = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    return {
        name: tensor
        if uses[tensor.untyped_storage().data_ptr()] == 1 and tensor.is_contiguous()
        else tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def state_tensors(state: ClientState, under: str = "") -> dict[str, Tensor]:
    """Return a client's state as named tensors, without its step count."""
    import torch

    return {
        **{f"{under}tensors/{name}": t for name, t in state.tensors.items()},
        **{f"{under}moments/{name}": t.cpu() for name, t in state.moments.items()},
        **{f"{under}wire/{name}": torch.from_numpy(a) for name, a in state.memory.items()},
    }


def with_states(arrays: State, states: Sequence[ClientState]) -> dict[str, Tensor]:
    """Return a checkpoint's tensors: the server's arrays, and the clients' states by their places."""
    import torch

    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    for index, state in enumerate(states):
        tensors |= state_tensors(state, f"client/{index}/")
    return tensors


def state_of(tensors: Mapping[str, Tensor], steps: int, under: str = "") -> ClientState:
    """Make a client's state from named tensors and its step count; the inverse of `state_tensors`."""
    from trifed.federation.client_update import ClientState

    def part(kind: str) -> dict[str, Tensor]:
        prefix = f"{under}{kind}/"
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    memory = {name: tensor.numpy() for name, tensor in part("wire").items()}
    return ClientState(part("tensors"), part("moments"), steps, memory)


def read_checkpoint(path: Path, way_out: str) -> tuple[dict[str, Any], list[ClientState], State]:
    """Read a checkpoint: its facts, the clients' states and the server's arrays.

    Args:
        path: The file.
        way_out: What the user can do if it is damaged.

    Raises:
        RunError: The file is damaged.
    """
    with open_tensors(path, way_out, "np") as file:
        facts = json.loads(file.metadata()["trifed"])
        steps = list(facts["steps"])
    # The checkpoint of a server between sites has no client's state, and is read without torch.
    with open_tensors(path, way_out, "pt" if steps else "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it cannot be iterated over)
    states = [state_of(tensors, count, f"client/{i}/") for i, count in enumerate(steps)]
    server = {n.removeprefix("server/"): np.asarray(t) for n, t in tensors.items() if n.startswith("server/")}
    return facts, states, server
