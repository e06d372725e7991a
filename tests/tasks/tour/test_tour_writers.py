"""Prompts, conversations and texts, as people bring them: from a file to answers, or one message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tour_cases import (
    BY_SITE,
    Case,
    array_of,
    changed,
    csv_of,
    jsonl_of,
    odd_pictures,
    of_site,
    parquet_of,
    picture,
    sets,
    without,
)

ROWS = [
    {
        "ask": f"say {n}",
        "about": "" if n % 2 else "it",
        "tell": ("red fox", "blue jay", "old owl")[n % 3],
        "site": "elm" if n % 3 else "oak",
    }
    for n in range(36)
]
ASKED = (*BY_SITE, "--prompt", "ask", "--answer", "tell")
KEPT = {"kept": 36, "rows": 36}


def asked(name: str, content: bytes, *flags: str, file: str = "t.csv", **more: Any) -> Case:
    return Case(name, {file: content}, file, (*ASKED, *flags), **{**KEPT, **more})


def talk(row: dict[str, Any], parts: bool = False) -> list[dict[str, Any]]:
    """OpenAI's form: a system turn, and two questions with their answers."""
    texts = [
        ("system", "be short"),
        ("user", row["ask"]),
        ("assistant", row["tell"]),
        ("user", "more"),
        ("assistant", "no"),
    ]
    return [{"role": role, "content": [{"type": "text", "text": text}] if parts else text} for role, text in texts]


def shared(row: dict[str, Any]) -> list[dict[str, Any]]:
    """ShareGPT's form."""
    return [{"from": "human", "value": row["ask"]}, {"from": "gpt", "value": row["tell"]}]


def talks(form: Any) -> list[dict[str, Any]]:
    return [{"talk": form(row), "site": row["site"]} for row in ROWS]


TALKED = (*BY_SITE, *sets(data__messages="talk"))


def talked(name: str, content: bytes, file: str = "t.jsonl", **more: Any) -> Case:
    return Case(name, {file: content}, file, TALKED, **{**KEPT, **more})


def spoiled(message: Any) -> bytes:
    """Conversations of which the third has another message at its end."""
    rows = talks(talk)
    return jsonl_of(changed(rows, 3, talk=[*rows[2]["talk"][:2], message]))


PROMPTS = [
    asked("prompts in a CSV file", csv_of(ROWS)),
    asked("JSON lines, some with an input", jsonl_of(ROWS), *sets(data__input="about"), file="t.jsonl"),
    asked("a JSON array, as Alpaca has it", array_of(ROWS), *sets(data__input="about"), file="t.json"),
    asked(
        "semicolons and an encoding of Windows",
        csv_of(changed(ROWS, 2, tell="größer €"), ";", "\r\n", "cp1252"),
        *sets(data__encoding="cp1252"),
    ),
    asked("an emoji, quotes and line ends", csv_of(changed(ROWS, 2, ask='\U0001f600 "a"\nb, c', tell="\u200b"))),
    asked(
        "a very long prompt and a very long answer",
        csv_of(changed(changed(ROWS, 2, ask="say " * 900), 3, tell="ab" * 900)),
    ),
    asked("rows that are there twice", csv_of([*ROWS, *ROWS[:5]]), rows=41),
    Case(
        "a folder with a file a site",
        {f"sites/{site}.csv": csv_of(of_site(ROWS, site)) for site in ("elm", "oak")},
        "sites",
        ASKED[4:],
        kept=36,
        new="sites/oak.csv",
        rows=12,
    ),
    Case(
        "texts alone",
        {"t.csv": csv_of([{"text": row["ask"] * 5, "site": row["site"]} for row in ROWS])},
        "t.csv",
        BY_SITE,
        **KEPT,
    ),
    asked("an empty answer", csv_of(changed(ROWS, 4, tell="")), refused="run", says=("t.csv, row 4", "'tell'")),
    asked("no answers", csv_of(without(ROWS, "tell")), refused="run", says=("t.csv", "'tell'", "data.answer")),
    asked("a header alone", b"ask,tell,site\n", refused="run", says=("t.csv", "no rows")),
    asked(
        "an answer that is a number",
        jsonl_of(changed(ROWS, 4, tell=7)),
        file="t.jsonl",
        refused="run",
        says=("line 4", "'tell'"),
    ),
    Case(
        "a new file without the answers",
        {"t.csv": csv_of(ROWS), "new.csv": csv_of(without(ROWS[:3], "tell"))},
        "t.csv",
        ASKED,
        new="new.csv",
        rows=3,
        refused="evaluate",
        says=("new.csv", "'tell'", "--label-column"),
    ),
]
TALKS = [
    talked("OpenAI's conversations", jsonl_of(talks(talk))),
    talked("ShareGPT's conversations, in one array", array_of(talks(shared)), "t.json"),
    talked("contents in parts", jsonl_of(talks(lambda row: talk(row, parts=True)))),
    talked("conversations in a Parquet file", parquet_of(talks(talk)), "t.parquet"),
    talked("conversations as JSON in a CSV file", csv_of(talks(lambda row: json.dumps(talk(row)))), "t.csv"),
    talked(
        "a conversation that waits for an answer",
        spoiled({"role": "user", "content": "?"}),
        refused="run",
        says=("line 3", "'assistant'"),
    ),
    talked(
        "an empty turn", spoiled({"role": "assistant", "content": ""}), refused="run", says=("line 3", "'talk'")
    ),
    talked(
        "an unknown role",
        spoiled({"role": "narrator", "content": "x"}),
        refused="run",
        says=("line 3", "'narrator'"),
    ),
    talked(
        "an image in a turn",
        spoiled({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}),
        refused="run",
        says=("line 3", "image_url"),
    ),
    Case(
        "new prompts for a model that was trained on conversations",
        {"t.jsonl": jsonl_of(talks(talk)), "new.jsonl": jsonl_of([{"talk": "say 3"}])},
        "t.jsonl",
        TALKED,
        new="new.jsonl",
        rows=1,
        refused="evaluate",
        says=("new.jsonl", "--label-column"),
    ),
]


def an_answer(row: dict[str, Any]) -> None:
    assert row["prompt"] and isinstance(row["answer"], str)


def scores(one: dict[str, Any]) -> None:
    assert one["perplexity"] >= 1
    assert one["exact_match"] is None or 0 <= one["exact_match"] <= one["rouge_l"] <= 1


FEW = ("--tokens", "3")
MODEL = ("--set", "model.max_length=96", "--set", "data.clients.min_examples=5")


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case.name)
def test_a_language_model_answers(tour, tiny_language, case):
    flags = ("--task", "causal-lm", "--model", tiny_language(), *MODEL)
    tour(case, flags, an_answer, scores, FEW, FEW)


@pytest.mark.tour
@pytest.mark.parametrize(
    "case", [case for case in PROMPTS if case.name != "texts alone"], ids=lambda case: case.name
)
def test_an_encoder_decoder_answers(tour, tiny_pairs, case):
    flags = ("--task", "sequence-to-sequence", "--model", tiny_pairs(), *MODEL)
    tour(case, flags, an_answer, scores, FEW, FEW)


@pytest.mark.parametrize("case", TALKS, ids=lambda case: case.name)
def test_a_language_model_goes_on_with_a_conversation(tour, tiny_language, case):
    flags = ("--task", "causal-lm", "--model", tiny_language(chat=True), *MODEL)
    tour(case, flags, an_answer, scores, FEW, FEW)


def test_conversations_need_a_chat_template(tour, tiny_language):
    case = talked("no chat template", jsonl_of(talks(talk)), refused="run", says=("model.name", "data.prompt"))
    tour(case, ("--task", "causal-lm", "--model", tiny_language(), *MODEL), an_answer, scores)


PICTURES = {f"scans/{n}.png": picture(("amber", "green", "violet")[n % 3], n) for n in range(24)}
SCENES = [
    {
        "image": name,
        "prompt": f"what {n}",
        "about": "" if n % 2 else "it",
        "answer": "ab" * (1 + n % 2),
        "site": "elm" if n % 2 else "oak",
    }
    for n, name in enumerate(PICTURES)
]
EMBEDDED = [{**row, "image": {"bytes": PICTURES[row["image"]], "path": None}} for row in SCENES]


def seen(name: str, content: bytes, *flags: str, file: str = "t.csv", **more: Any) -> Case:
    files = {**PICTURES, file: content, **more.pop("files", {})}
    return Case(name, files, file, (*BY_SITE, *flags), **{"kept": 24, "rows": 24, **more})


ODD = odd_pictures()
ODD_ROWS = [{**SCENES[n], "image": f"scans/{name}"} for n, name in enumerate(ODD)] + SCENES[len(ODD) :]

QUESTIONS = [
    seen("paths in a CSV file", csv_of(SCENES)),
    seen("JSON lines, some with an input", jsonl_of(SCENES), *sets(data__input="about"), file="t.jsonl"),
    seen("images in a Parquet file", parquet_of(EMBEDDED), file="t.parquet"),
    seen(
        "images of every kind", csv_of(ODD_ROWS), files={f"scans/{name}": content for name, content in ODD.items()}
    ),
    seen(
        "an emoji and a very long answer",
        csv_of(changed(changed(SCENES, 2, prompt="\U0001f600"), 3, answer="ab" * 900)),
    ),
    seen(
        "a broken image that is left out",
        csv_of(SCENES),
        *sets(data__skip_broken="true"),
        kept=23,
        files={"scans/3.png": PICTURES["scans/3.png"][:99], "new.csv": csv_of(SCENES[:3])},
        new="new.csv",
        rows=3,
    ),
    seen(
        "a broken image",
        csv_of(SCENES),
        files={"scans/3.png": b"none"},
        refused="run",
        says=("t.csv, row 4", "3.png", "data.skip_broken"),
    ),
    seen(
        "a file that is not there",
        csv_of(changed(SCENES, 4, image="x.png")),
        refused="run",
        says=("row 4", "x.png"),
    ),
    seen("an empty answer", csv_of(changed(SCENES, 4, answer="")), refused="run", says=("row 4", "'answer'")),
    seen(
        "no prompts", csv_of(without(SCENES, "prompt")), refused="run", says=("t.csv", "'prompt'", "data.prompt")
    ),
    seen(
        "a prompt that leaves no room for an answer",
        csv_of(changed(SCENES, 4, prompt="what " * 90)),
        refused="run",
        says=("model.max_length", "raise it"),
    ),
]


@pytest.mark.parametrize(
    ("case", "chat"),
    [(case, False) for case in QUESTIONS] + [(case, True) for case in QUESTIONS[:2]],
    ids=lambda value: value.name if isinstance(value, Case) else "chat" if value else "plain",
)
def test_a_model_writes_about_images(tour, tiny_scenes, case, chat):
    flags = ("--task", "image-text-to-text", "--model", tiny_scenes(chat=chat), *MODEL)
    tour(case, flags, an_answer, scores, FEW, FEW)
