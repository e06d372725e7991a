"""Train an image classifier on folders of photos: one folder for each site, and in it one for each label.

    photos/north/healthy/0.png
    photos/north/dry/0.png
    photos/south/healthy/0.png

Without arguments the script draws leaves and uses a tiny random ViT; give your own folder and a ViT for more:
python examples/image_folders.py photos google/vit-base-patch16-224-in21k
"""

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw
from tiny_models import write_vit

from trifed import make_config, run

COLORS = {"healthy": (60, 150, 60), "dry": (170, 120, 60), "mildew": (190, 200, 190)}
GROUNDS = {"north": (90, 70, 60), "south": (200, 190, 160)}


def draw_leaf(path: Path, label: str, site: str, draw: random.Random) -> None:
    """Draw one leaf at a random place, on the ground of its site."""
    image = Image.new("RGB", (48, 48), GROUNDS[site])
    left, top = draw.randint(0, 12), draw.randint(0, 20)
    color = tuple(value + draw.randint(-20, 20) for value in COLORS[label])
    ImageDraw.Draw(image).ellipse((left, top, left + 34, top + 22), fill=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_photos(folder: Path, count: int = 16) -> None:
    """Write `count` photos of each label at each site."""
    draw = random.Random(0)
    for site in GROUNDS:
        for label in COLORS:
            for number in range(count):
                draw_leaf(folder / site / label / f"{number}.png", label, site, draw)


def main(folder: str = "photos", model: str = "", rounds: int = 5) -> list[str]:
    """Train on a folder of sites; return the labels that the first site's model gives to three new photos."""
    if not Path(folder).exists():
        write_photos(Path(folder))
    config = make_config(
        {
            "name": "image-folders",
            "task": "image-classification",
            "rounds": rounds,
            "model": {"name": model or write_vit(Path("tiny-vit"))},
            "adapter": {"rank": 8, "alpha": 16},
            "data": {"source": folder},
            "training": {"learning_rate": 3e-3},
        }
    )
    result = run(config)
    print(result)
    site = result.summary["clients"][0]["name"]
    new = Path("new-photos")
    for label in COLORS:
        draw_leaf(new / f"{label}.png", label, "north", random.Random(1))
    paths = sorted(new.glob("*.png"))
    labels = result.client(site).predict(paths)
    for path, label in zip(paths, labels, strict=True):
        print(f"{site}: {path} looks {label}")
    return labels


if __name__ == "__main__":
    main(*sys.argv[1:])
