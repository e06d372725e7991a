"""Train on one CSV file for each of three hospitals, and see whether sharing helped each of them.

Without an argument the script invents the three files: notes from a front desk, and the department of each note.
The hospitals see different cases: one mostly hearts, one mostly bones, one mostly lungs.
"""

import csv
import random
import sys
from pathlib import Path

from trifed import make_config, run

CASES = {
    "cardiology": [
        "pressure in the chest", "an irregular pulse", "palpitations at night", "swollen feet",
        "high blood pressure", "dizziness when getting up",
    ],
    "orthopaedics": [
        "pain in the left knee", "a twisted ankle", "a stiff shoulder", "a broken wrist after a fall",
        "a sore lower back", "a hip that clicks",
    ],
    "pneumology": [
        "a cough for three weeks", "short breath on stairs", "wheezing in the morning", "thick phlegm",
        "asthma in the cold", "whistling lungs",
    ],
}  # fmt: skip
PEOPLE = ["a student", "a retired teacher", "a bus driver", "a pregnant woman", "a young cook", "an old farmer"]
SENTENCES = [
    "{person} reports {case} since {since}",
    "{person}: {case}, worse after {since}, please see today",
    "{person} came with {case}; no medicine so far",
    "referred by the family doctor, {person} with {case}",
]
SINCE = ["monday", "last week", "yesterday", "the holidays", "a long walk", "a new job"]


def write_hospitals(folder: Path, rows: int = 80) -> None:
    """Write north.csv, harbour.csv and valley.csv, each with the columns note and department."""
    folder.mkdir(parents=True)
    departments = list(CASES)
    draw = random.Random(0)
    for place, hospital in enumerate(["north", "harbour", "valley"]):
        weights = [6 if place == number else 2 for number in range(len(departments))]
        with (folder / f"{hospital}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["note", "department"])
            for number in range(rows):
                department = draw.choices(departments, weights)[0]
                note = draw.choice(SENTENCES).format(
                    person=draw.choice(PEOPLE), case=draw.choice(CASES[department]), since=draw.choice(SINCE)
                )
                writer.writerow([f"{note} (case {number})", department])


def main(folder: str = "hospitals", model: str = "demo", rounds: int = 5) -> list[str]:
    """Train on the CSV files of a folder, one for each site; return the predicted departments of two notes."""
    if not Path(folder).exists():
        write_hospitals(Path(folder))
    config = make_config(
        {
            "name": "hospitals",  # results are written to runs/hospitals, which must not exist yet
            "rounds": rounds,
            "model": {"name": model, "max_length": 48},
            # Each file of the folder is one site, named like the file.
            "data": {"source": folder, "text": "note", "label": "department"},
        }
    )
    result = run(config)
    print(result)
    alone = {client["name"]: client["now"]["accuracy"] for client in result.baselines["alone"].summary["clients"]}
    for client in result.summary["clients"]:
        name, now = client["name"], client["now"]["accuracy"]
        print(f"{name}: accuracy {now:.2f}, alone {alone[name]:.2f}; {client['bytes_up']:,} bytes sent")

    classifier = result.client("north")
    notes = ["pain in the knee after a fall", "coughing since friday"]
    departments = classifier.predict(notes)
    for note, department in zip(notes, departments, strict=True):
        print(f"north: {note!r} belongs to {department}")
    return departments


if __name__ == "__main__":
    main(*sys.argv[1:])
