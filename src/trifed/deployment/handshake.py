"""Before the first round: what clients tell, and what all have to agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trifed.common.errors import RunError
from trifed.config.run import RunConfig
from trifed.deployment.checkpoint import ClientRecord
from trifed.deployment.client_manager import ClientManager
from trifed.deployment.protocol import Reply, digest, read_layout, write_layout
from trifed.deployment.refusals import RefusalCode
from trifed.federation.context import run_context
from trifed.federation.messages import array_sizes, decode_values, layout_sizes, manifest
from trifed.federation.run_folder import RunFolder
from trifed.federation.server import Server, layout_of
from trifed.methods.packing import Layout, Tensors, Vector, pack, unpack

SHARED_PROJECTIONS = "frames.safetensors"
Tell = Callable[..., None]
Opened = dict[int, Reply]


def open_clients(
    config: RunConfig, run: str, client_manager: ClientManager
) -> tuple[Server, list[ClientRecord], Opened]:
    """Open every client, and agree on what travels and where it starts. Also what each told, by place.

    Who cannot be opened is refused, if enough others are there.

    Raises:
        RunError: too few could be opened, or one starts elsewhere than it had said.
    """
    while True:
        opened = client_manager.ask(
            "open", {place: {"start": int(place == 0)} for place in range(len(client_manager.names))}
        )
        refusals = {
            name: client_manager.refusal_of(opened.get(place)) for place, name in enumerate(client_manager.names)
        }
        wrong = {name: refusal for name, refusal in refusals.items() if refusal is not None}
        if not wrong:
            break
        if len(client_manager.names) - len(wrong) < config.deployment.clients:
            client_manager.need_all(opened, "be opened")
        for name, refusal in wrong.items():  # the others have other places then, and are opened again
            client_manager.dismiss(name, refusal)
    members = [member_of(client_manager, name, opened[place]) for place, name in enumerate(client_manager.names)]
    layout, start = _agree_on_start(config, run, client_manager, opened[0])
    return Server(run_context(config, layout, client_manager.agreed[0], run), len(members), start), members, opened


def member_of(client_manager: ClientManager, name: str, opened: Reply) -> ClientRecord:
    """A client that was opened; MessageError where it did not say what it should."""
    return ClientRecord(name, client_manager.bound[name], opened.number("examples"), opened.text("data"))


def begin(server: Server, members: list[ClientRecord], opened: Opened, tell: Tell) -> None:
    """Begin with what clients told of their data.

    Raises:
        MessageError: that of one is missing, or is not what it should be.
    """
    wanted = sorted(opened) if server.context.method.summarise else []
    summaries = {place: opened[place].part("summary") for place in wanted}
    for place, payload in summaries.items():
        tell_summary(tell, members[place].name, payload)
    server.open(summaries)


def tell_summary(tell: Tell, name: str, payload: bytes) -> None:
    """What a client's summary takes."""
    tell(event="summary", client=name, up=manifest(payload, array_sizes(payload)))


def _agree_on_start(
    config: RunConfig, run: str, client_manager: ClientManager, told: Reply
) -> tuple[Layout, Vector]:
    """What travels, and its common start, as one client says; all have named the same digest of it."""
    layout = read_layout(told.text("layout"))
    expected = run_context(config, layout, client_manager.agreed[0], run).header("start", 0, 0)
    start = decode_values(told.part("start"), expected, layout)[1]
    if digest(layout, start) != client_manager.agreed[1]:
        raise RunError(f"{client_manager.names[0]} sent another start than it had named; leave it out")
    return layout, start


def agree_on_shared_projections(
    server: Server,
    client_manager: ClientManager,
    members: list[ClientRecord],
    layers: Layout,
    folder: RunFolder,
    tell: Tell,
) -> None:
    """Make frames of the clients' first gradients, send them to all, and keep them for who comes later."""
    answers = client_manager.ask(
        "gradient", {place: {} for place, member in enumerate(members) if member.examples}
    )
    gradients = {place: reply.part("gradient") for place, reply in sorted(answers.items())}
    for place, payload in gradients.items():
        tell(event="opening", client=members[place].name, up=manifest(payload, layout_sizes(layers)))
    shared_projections = server.shared_projections(gradients, layers)
    folder.write_tensors(
        SHARED_PROJECTIONS, {name: torch.from_numpy(values) for name, values in shared_projections.items()}, {}
    )
    server.start = _start_with(server, shared_projections)
    client_manager.need_all(
        send_shared_projections(server, client_manager, list(range(len(members))), folder, tell), "take the frames"
    )


def send_shared_projections(
    server: Server, client_manager: ClientManager, places: list[int], folder: RunFolder, tell: Tell
) -> Opened:
    """Send the frames that are kept to clients; an answer that starts elsewhere becomes one with an error."""
    shared_projections: Tensors = folder.read_arrays(SHARED_PROJECTIONS)
    layout = layout_of(shared_projections)
    parts = {place: {"frames": server.shared_projections_for(place, shared_projections)} for place in places}
    facts: dict[int, dict[str, Any]] = {place: {"layout": write_layout(layout)} for place in places}
    told = client_manager.ask("frames", facts, parts)
    wanted = digest(server.context.compression.layout, server.start)
    for place, reply in list(told.items()):
        if client_manager.refusal_of(reply) is None and reply.facts.get("digest") != wanted:
            told[place] = Reply(error=RefusalCode.STARTS_ELSEWHERE)
        sizes = manifest(parts[place]["frames"], layout_sizes(layout))
        tell(event="opening", client=client_manager.names[place], down=sizes)
    return told


def _start_with(server: Server, shared_projections: Tensors) -> Vector:
    """The common start, where a core starts as the frames say."""
    layout = server.context.compression.layout
    own = unpack(server.start, layout)
    return pack({name: shared_projections.get(name, own[name]) for name, _ in layout}, layout)
