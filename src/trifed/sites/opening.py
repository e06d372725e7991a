"""Before the first round: what clients tell, and what all have to agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trifed.config import RunConfig
from trifed.errors import RunError
from trifed.federation.messages import array_sizes, decode_values, layout_sizes, manifest
from trifed.federation.server import Server, layout_of
from trifed.federation.store import RunFolder
from trifed.federation.terms import terms_of
from trifed.methods.packing import Layout, Tensors, Vector, pack, unpack
from trifed.sites.protocol import Reply, digest, read_layout, write_layout
from trifed.sites.records import Member
from trifed.sites.refusals import RefusalCode
from trifed.sites.roll import Roll

FRAMES = "frames.safetensors"
Tell = Callable[..., None]
Opened = dict[int, Reply]


def open_clients(config: RunConfig, run: str, roll: Roll) -> tuple[Server, list[Member], Opened]:
    """Open every client, and agree on what travels and where it starts. Also what each told, by place.

    Who cannot be opened is refused, if enough others are there.

    Raises:
        RunError: too few could be opened, or one starts elsewhere than it had said.
    """
    while True:
        opened = roll.ask("open", {place: {"start": int(place == 0)} for place in range(len(roll.names))})
        refusals = {name: roll.refusal_of(opened.get(place)) for place, name in enumerate(roll.names)}
        wrong = {name: refusal for name, refusal in refusals.items() if refusal is not None}
        if not wrong:
            break
        if len(roll.names) - len(wrong) < config.deployment.clients:
            roll.need_all(opened, "be opened")
        for name, refusal in wrong.items():  # the others have other places then, and are opened again
            roll.dismiss(name, refusal)
    members = [member_of(roll, name, opened[place]) for place, name in enumerate(roll.names)]
    layout, start = _agree_on_start(config, run, roll, opened[0])
    return Server(terms_of(config, layout, roll.agreed[0], run), len(members), start), members, opened


def member_of(roll: Roll, name: str, opened: Reply) -> Member:
    """A client that was opened; MessageError where it did not say what it should."""
    return Member(name, roll.bound[name], opened.number("examples"), opened.text("data"))


def begin(server: Server, members: list[Member], opened: Opened, tell: Tell) -> None:
    """Begin with what clients told of their data.

    Raises:
        MessageError: that of one is missing, or is not what it should be.
    """
    wanted = sorted(opened) if server.terms.method.summarise else []
    summaries = {place: opened[place].part("summary") for place in wanted}
    for place, payload in summaries.items():
        tell_summary(tell, members[place].name, payload)
    server.open(summaries)


def tell_summary(tell: Tell, name: str, payload: bytes) -> None:
    """What a client's summary takes."""
    tell(event="summary", client=name, up=manifest(payload, array_sizes(payload)))


def _agree_on_start(config: RunConfig, run: str, roll: Roll, told: Reply) -> tuple[Layout, Vector]:
    """What travels, and its common start, as one client says; all have named the same digest of it."""
    layout = read_layout(told.text("layout"))
    expected = terms_of(config, layout, roll.agreed[0], run).header("start", 0, 0)
    start = decode_values(told.part("start"), expected, layout)[1]
    if digest(layout, start) != roll.agreed[1]:
        raise RunError(f"{roll.names[0]} sent another start than it had named; leave it out")
    return layout, start


def agree_on_frames(
    server: Server, roll: Roll, members: list[Member], layers: Layout, folder: RunFolder, tell: Tell
) -> None:
    """Make frames of the clients' first gradients, send them to all, and keep them for who comes later."""
    answers = roll.ask("gradient", {place: {} for place, member in enumerate(members) if member.examples})
    gradients = {place: reply.part("gradient") for place, reply in sorted(answers.items())}
    for place, payload in gradients.items():
        tell(event="opening", client=members[place].name, up=manifest(payload, layout_sizes(layers)))
    frames = server.frames(gradients, layers)
    folder.write_tensors(FRAMES, {name: torch.from_numpy(values) for name, values in frames.items()}, {})
    server.start = _start_with(server, frames)
    roll.need_all(send_frames(server, roll, list(range(len(members))), folder, tell), "take the frames")


def send_frames(server: Server, roll: Roll, places: list[int], folder: RunFolder, tell: Tell) -> Opened:
    """Send the frames that are kept to clients; an answer that starts elsewhere becomes one with an error."""
    frames: Tensors = folder.read_arrays(FRAMES)
    layout = layout_of(frames)
    parts = {place: {"frames": server.frames_for(place, frames)} for place in places}
    facts: dict[int, dict[str, Any]] = {place: {"layout": write_layout(layout)} for place in places}
    told = roll.ask("frames", facts, parts)
    wanted = digest(server.terms.wire.layout, server.start)
    for place, reply in list(told.items()):
        if roll.refusal_of(reply) is None and reply.facts.get("digest") != wanted:
            told[place] = Reply(error=RefusalCode.STARTS_ELSEWHERE)
        sizes = manifest(parts[place]["frames"], layout_sizes(layout))
        tell(event="opening", client=roll.names[place], down=sizes)
    return told


def _start_with(server: Server, frames: Tensors) -> Vector:
    """The common start, where a core starts as the frames say."""
    layout = server.terms.wire.layout
    own = unpack(server.start, layout)
    return pack({name: frames.get(name, own[name]) for name, _ in layout}, layout)
