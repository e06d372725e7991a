"""Images and an audit: the whole model's gradient gives them back."""

from __future__ import annotations

import numpy as np

from trifed import make_config
from trifed.audit.audit import audit
from trifed.audit.plan import Plan
from trifed.config import to_toml


def test_an_image_comes_back_from_the_whole_models_gradient(image_values, tmp_path):
    path = tmp_path / "photos.toml"
    values = {**image_values, "name": "photos", "method": "fedavg-full", "controls": False}
    values["training"] = {**values["training"], "learning_rate": 1e-4}
    path.write_text(to_toml(make_config(values)))
    plan = Plan(rounds=1, batches=(1,), trials=1, matched=1, iterations=60, clients=1, members=4, controls=())
    found = audit(path, tmp_path / "audit", plan)
    scores = {(row.attack, row.sees): row.scores for row in found.reconstruction}
    assert scores["matching", "gradient"]["psnr"].mean > scores["guesser", "gradient"]["psnr"].mean + 2
    assert scores["matching", "gradient"]["distance"].mean < scores["guesser", "gradient"]["distance"].mean / 2
    assert all(np.isfinite(value.mean) for row in scores.values() for value in row.values())
    assert found.reconstruction[0].attempts[0].original[0].startswith("data:image/png;base64,")
