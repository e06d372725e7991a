"""Compare two files of `record.py`: print where cases differ, and exit with 1 if any does without being declared.

python benchmarks/same_numbers/compare.py BEFORE.json AFTER.json [--show 3] [--part]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """A change that is meant. Both are globs in which '*' also spans '/'.

    `field` is a path as it is printed, such as `events.jsonl/*:warned/text`. A path that ends with an event's
    kind, such as `events.jsonl/*:joined`, means events that were added or removed: both sides leave them out.
    """

    case: str
    field: str
    why: str


WANTED: tuple[Wanted, ...] = (
    Wanted("sites/*", "events.jsonl/*:left out/code", "a site's refusal names its code"),
    Wanted(
        "sites/*",
        "events.jsonl/*:left out/reason",
        "the server's sentence for a code; a site's own words stay there",
    ),
    Wanted("*", "*checkpoint.safetensors/server/screening*", "the running median of the bound on uploads is kept"),
    Wanted("*", "*checkpoints/round-*", "the last checkpoints are kept"),
    Wanted("sites/*", "*states/round-*", "a site keeps the states of its last rounds"),
    Wanted("sites/*", "events.jsonl/*:scores/*/examples", "a number of examples is a whole number"),
    Wanted("sites/*", "summary.json/*/examples", "a number of examples is a whole number"),
    Wanted("*", "*events.jsonl/*:bounded*", "a bound on one client's upload says what it changed"),
)


class Difference(NamedTuple):
    field: str
    before: Any
    after: Any


ABSENT = "(absent)"


def labelled(value: list[Any], path: str, case: str) -> dict[str, Any]:
    """A list as a dictionary by place; events by place and kind, without those whose kind is declared."""
    if not (value and all(isinstance(item, dict) and "event" in item for item in value)):
        return {str(place): item for place, item in enumerate(value)}
    kept = [event for event in value if not declared(case, f"{path}0:{event['event']}")]
    return {f"{place}:{event['event']}": event for place, event in enumerate(kept)}


def differences(before: Any, after: Any, case: str, path: str = "") -> Iterator[Difference]:
    """Every place where two JSON values differ; messages are compared as sets."""
    if path == "messages/" and before != after and ABSENT not in (before, after):
        for message in sorted(set(before) ^ set(after)):
            yield Difference(f"{path}{message.rsplit(' ', 1)[0]}", message in before, message in after)
        return
    if isinstance(before, list) and isinstance(after, list):
        before, after = (labelled(value, path, case) for value in (before, after))
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            pair = (value.get(name, ABSENT) for value in (before, after))
            yield from differences(*pair, case, f"{path}{name}/")
    elif before != after or type(before) is not type(after):
        yield Difference(path.removesuffix("/"), before, after)


def declared(case: str, field: str) -> bool:
    return any(fnmatchcase(case, wanted.case) and fnmatchcase(field, wanted.field) for wanted in WANTED)


def shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--show", type=int, default=3, help="differences printed of a case")
    parser.add_argument(
        "--part", action="store_true", help="AFTER holds some of the cases only (record.py --only)"
    )
    arguments = parser.parse_args()
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (arguments.before, arguments.after))
    names = [name for name in dict.fromkeys([*before, *after]) if name in after or not arguments.part]
    differing = meant = 0
    for name in names:
        found = list(differences(before.get(name, ABSENT), after.get(name, ABSENT), name))
        left = [difference for difference in found if not declared(name, difference.field)]
        meant += len(found) - len(left)
        differing += bool(left)
        for difference in left[: arguments.show]:
            print(f"{name}: {difference.field}: {shown(difference.before)} -> {shown(difference.after)}")
        if len(left) > arguments.show:
            print(f"{name}: and {len(left) - arguments.show} more")
    print(f"{len(names)} cases: {differing} differ; {meant} declared differences")
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
