from __future__ import annotations

import copy
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trifed.adapters import TriLoraConfig, adapted_layers
from trifed.common.errors import AdapterError


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_start_equals_the_base_model(family, train, logits):
    before = logits(family.base())
    model = family.adapted(train=train)
    assert len(list(adapted_layers(model))) == 4
    assert torch.equal(logits(model), before)


def test_the_starting_values(family):
    for _, layer in adapted_layers(family.adapted(train="all")):
        a, b, c = layer.factors("default")
        assert torch.equal(c, torch.eye(4)) and not b.any() and a.all()
        assert layer.scaling["default"] == 10 / 4
    for _, layer in adapted_layers(family.adapted(train="core", alpha_pattern={".*": 99})):
        a, b, c = layer.factors("default")
        assert not c.any() and a.any() and b.any()
        assert layer.scaling["default"] == 1.0
        layer.set_scale("default", 1.0)
        assert layer.scaling["default"] == 1.0


def test_mode_all_draws_the_same_a_as_plain_lora(family):
    ours = family.adapted(train="all", seed=3)
    base = family.base()
    torch.manual_seed(3)
    conv1d = family.name == "gpt2"
    plain = get_peft_model(base, LoraConfig(r=4, target_modules=list(family.targets), fan_in_fan_out=conv1d))
    parameters = dict(plain.named_parameters())
    for name, layer in adapted_layers(ours):
        assert torch.equal(layer.factors("default")[0], parameters[f"{name}.lora_A.default.weight"])


def test_the_output_is_the_formula(family, train, randomise):
    model = randomise(family.adapted(train=train))
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    for _, layer in adapted_layers(model):
        a, b, c = layer.factors("default")
        base = layer.get_base_layer()
        w0 = base.weight.T if family.name == "gpt2" else base.weight  # Conv1D stores (d_in, d_out)
        expected = x @ w0.T + (10 / 4 if train == "all" else 1.0) * (x @ a.T @ c.T @ b.T)
        if base.bias is not None:
            expected = expected + base.bias
        assert (layer(x) - base(x)).abs().max() > 0.1  # the adapter does something
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_dropout_acts_on_the_input_of_a_in_training_only(bert, randomise):
    model = randomise(bert.adapted(lora_dropout=0.5))
    _, layer = next(adapted_layers(model))
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    a, b, c = layer.factors("default")
    layer.train()
    torch.manual_seed(5)
    dropped = layer(x)
    torch.manual_seed(5)
    kept = nn.functional.dropout(x, 0.5)
    expected = layer.get_base_layer()(x) + 2.5 * (kept @ a.T @ c.T @ b.T)
    torch.testing.assert_close(dropped, expected, rtol=1e-5, atol=1e-5)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_exactly_the_named_parameters_train(family, train):
    model = family.adapted(train=train)
    parts = ("lora_A", "lora_B", "lora_C") if train == "all" else ("lora_C",)
    expected = {f"{n}.{part}.default.weight" for n, _ in adapted_layers(model) for part in parts}
    assert trainable(model) == expected
    model.train()
    model.set_adapter("default")
    model.enable_adapter_layers()
    model.set_requires_grad("default")
    assert trainable(model) == expected


def test_a_head_trains_beside_the_core(bert):
    model = bert.adapted(train="core", modules_to_save=["classifier"])
    head = {n for n in trainable(model) if "classifier" in n}
    assert len(head) == 2
    assert all(n in head or "lora_C" in n for n in trainable(model))


def test_two_steps_move_every_core(family, train, loss):
    # s·B C A: dL/dC = s·B^T G (A x)^T with G = dL/dy. In mode "all" B = 0 at the start, so dL/dC = 0 and (for
    # A, by the same factor B) dL/dA = 0, while dL/dB = s·G (C A x)^T is not: step 1 moves B alone and step
    # 2 the core too. In mode "core" B = U_r S_r is not 0, so the core moves at once.
    model = family.adapted(train=train).train()
    start = {n: layer.factors("default")[2].detach().clone() for n, layer in adapted_layers(model)}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0.0)
    for step in (1, 2):
        loss(model).backward()
        for _, layer in adapted_layers(model):
            a, b, c = layer.factors("default")
            if train == "all" and step == 1:
                assert not c.grad.any() and not a.grad.any() and b.grad.any()
            elif train == "core":
                assert c.grad.any() and a.grad is None and b.grad is None
        optimiser.step()
        optimiser.zero_grad()
    for name, layer in adapted_layers(model):
        assert (layer.factors("default")[2] - start[name]).abs().max() > 1e-3, name


def test_a_core_costs_one_r_by_r_product_a_token_more_than_plain_lora(bert, logits):
    def flops(config: LoraConfig) -> int:
        model = get_peft_model(bert.base(), config).eval()
        with FlopCounterMode(display=False) as counter:
            logits(model)
        return counter.get_total_flops()

    tokens, layers = 2 * 7, 4
    extra = flops(bert.config()) - flops(LoraConfig(r=4, target_modules=list(bert.targets)))
    assert extra == layers * tokens * 2 * 4 * 4


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"train": "core", "init_lora_weights": "gaussian"}, "a core that trains alone would never move"),
        ({"train": "core", "init_lora_weights": False}, "init_lora_weights is False"),
        ({"train": "all", "init_lora_weights": "pissa"}, "only True is supported"),
        ({"train": "all", "init_lora_weights": "loftq"}, "only True is supported"),
        ({"train": "cores"}, "expected 'all' or 'core'"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"use_rslora": True}, "use_rslora is not supported"),
        ({"lora_bias": True}, "lora_bias is not supported"),
        ({"bias": "all"}, "only 'none' is supported"),
        ({"target_parameters": ["weight"]}, "target_parameters is not supported"),
        ({"r": 0}, "at least 1"),
        ({"rank_pattern": {"query": 0}}, "rank_pattern['query'] is 0"),
        ({"lora_alpha": 0}, "nothing can learn"),
    ],
)
def test_refused_configurations(settings, reason):
    with pytest.raises(AdapterError, match=re.escape(reason)):
        TriLoraConfig(**settings)


def test_all_mistakes_of_a_configuration_are_told_at_once():
    with pytest.raises(AdapterError, match=r"'cores'.*r is 0.*use_dora"):
        TriLoraConfig(train="cores", r=0, use_dora=True)


def test_a_configuration_changed_after_construction_is_checked_again(bert):
    config = bert.config()
    config.use_rslora = True
    with pytest.raises(AdapterError, match="use_rslora"):
        get_peft_model(bert.base(), config)


def test_a_rank_above_the_layer_is_refused_before_the_model_is_touched(llama, train):
    base = llama.base()
    with pytest.raises(AdapterError, match=r"v_proj.*\b8\b.*\b16\b.*\b8\b"):
        llama.adapted(base, r=9, train=train)
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())
    pattern = {"v_proj": 8}
    model = llama.adapted(base, r=9, rank_pattern=pattern, train=train)
    assert {layer.r["default"] for _, layer in adapted_layers(model)} == {8, 9}


def test_other_layers_than_linear_ones_are_refused(bert):
    base = bert.base()
    with pytest.raises(AdapterError, match=r"word_embeddings'.* Embedding"):
        bert.adapted(base, target_modules=["query", "word_embeddings"])
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())


def test_all_linear_is_checked_and_adapted(llama):
    with pytest.raises(AdapterError, match="k_proj"):
        llama.adapted(r=9, target_modules="all-linear")
    assert len(list(adapted_layers(llama.adapted(target_modules="all-linear")))) == 2 * 7


def test_a_core_cannot_start_from_a_weight_of_too_low_rank(bert):
    base = bert.base()
    with torch.no_grad():
        base.bert.encoder.layer[1].attention.self.value.weight[:, 3:] = 0.0
    with pytest.raises(AdapterError, match=r"layer\.1\.attention\.self\.value.*numerical rank is 3"):
        bert.adapted(base, train="core")


def test_several_adapters_on_one_model(family, logits, randomise):
    alone = {t: logits(randomise(family.adapted(train=t), seed=s)) for t, s in (("all", 1), ("core", 2))}
    model = randomise(family.adapted(train="all"), seed=1)
    model.add_adapter("second", family.config(train="core", r=4))
    assert torch.equal(logits(model), alone["all"])
    randomise(model, "second", seed=2)
    model.set_adapter("second")
    assert torch.equal(logits(model), alone["core"])
    assert trainable(model) and all(n.endswith("lora_C.second.weight") for n in trainable(model))
    model.set_adapter("default")
    assert torch.equal(logits(model), alone["all"])
    assert {n.rsplit(".", 2)[1] for n in trainable(model)} == {"default"}
    assert len(trainable(model)) == 3 * 4
    model.delete_adapter("second")
    assert not any("second" in n for n in model.state_dict())
    assert torch.equal(logits(model), alone["all"])


def test_disabled_adapters_leave_the_base(family, train, logits, randomise):
    before = logits(family.base())
    model = randomise(family.adapted(train=train))
    assert not torch.allclose(logits(model), before, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("safe", [False, True])
def test_merge_unmerge_and_unload(family, train, safe, logits, randomise):
    before = logits(family.base())
    model = randomise(family.adapted(train=train))
    adapted = logits(model)
    model.merge_adapter(safe_merge=safe)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():  # unmerges
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-4)
    merged = model.merge_and_unload(safe_merge=safe)
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-4)


def test_frames_are_not_taken_from_a_merged_weight(bert, randomise):
    model = randomise(bert.adapted(train="all"))
    model.merge_adapter()
    with pytest.raises(AdapterError, match="unmerge it first"):
        model.add_adapter("second", bert.config(train="core"))
    assert list(model.peft_config) == ["default"]


def test_a_base_in_bf16_keeps_a_float32_adapter(family, train, logits):
    base = family.base().to(torch.bfloat16)
    before = logits(base)
    model = family.adapted(base, train=train)
    assert before.dtype == torch.bfloat16
    assert torch.equal(logits(model), before)
    for _, layer in adapted_layers(model):
        a, b, c = layer.factors("default")
        assert {a.dtype, b.dtype, c.dtype} == {torch.float32}
        if train == "core":
            torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=0, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(family, train, loss, randomise):
    model = randomise(family.adapted(train=train)).train()
    loss(model).backward()
    kept = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    loss(model).backward()
    for name, parameter in model.named_parameters():
        if name in kept:
            torch.testing.assert_close(parameter.grad, kept[name], rtol=1e-5, atol=1e-6)


def test_a_copy_is_independent(family, train, logits, randomise):
    model = family.adapted(train=train)
    copied = copy.deepcopy(model)
    randomise(model)
    assert torch.equal(logits(copied), logits(family.base()))
    assert trainable(copied) == trainable(model)
    randomise(copied)
    assert torch.equal(logits(copied), logits(model))


def test_autocast_runs_the_adapter_in_bf16_too(family, train, logits, randomise):
    model = randomise(family.adapted(train=train))
    expected = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            logits(model).float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max())
        )


def test_weighted_mixtures_are_refused(bert):
    model = bert.adapted()
    model.add_adapter("second", bert.config())
    with pytest.raises(AdapterError, match="cores"):
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mix")
