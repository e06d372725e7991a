"""Use the tri-matrix adapter W = W0 + s·B·C·A as a PEFT method, without any federation.

`train="core"` trains only C, r x r numbers for each layer, between projections A and B from the SVD of W0.
"""

import sys
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModel

from trifed import TriLoraConfig, export_plain_lora
from trifed.adapters import load_adapter


def main(
    model: str = "sentence-transformers/all-MiniLM-L6-v2", folder: str = "tri-matrix", steps: int = 20
) -> float:
    """Train an adapter for some steps, save it, load it, export it; return the largest difference of outputs."""
    base = AutoModel.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(base, TriLoraConfig(r=4, target_modules=["query", "value"], train="core"))
    adapted.print_trainable_parameters()

    tokens = torch.arange(8).reshape(2, 4)
    target = torch.zeros(2, 4, base.config.hidden_size)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=0.01)
    for _ in range(steps):
        loss = torch.nn.functional.mse_loss(adapted(input_ids=tokens).last_hidden_state, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss after {steps} steps: {loss.item():.4f}")

    adapted.save_pretrained(str(Path(folder) / "core"), save_embedding_layers=False)
    export_plain_lora(adapted, Path(folder) / "lora")  # C folded into B: the same outputs without trifed
    again = load_adapter(AutoModel.from_pretrained(model, dtype=torch.float32), Path(folder) / "core")
    plain = PeftModel.from_pretrained(AutoModel.from_pretrained(model, dtype=torch.float32), Path(folder) / "lora")
    with torch.no_grad():
        outputs = [each.eval()(input_ids=tokens).last_hidden_state for each in (adapted, again, plain)]
    difference = max((outputs[0] - other).abs().max().item() for other in outputs[1:])
    print(f"largest difference after saving and after exporting: {difference:.1e}")
    return difference


if __name__ == "__main__":
    main(*sys.argv[1:])
