from __future__ import annotations

import hashlib

import pytest
import torch

from trifed.adapters import adapted_layers, frames_hash
from trifed.adapters.shared_projections import fix_signs, hash_projections, svd_projections
from trifed.common.errors import AdapterError


def weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), [(9, 6), (6, 9), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_frames_are_the_best_approximation_of_their_rank(rows, columns, rank):
    w = weight(rows, columns)
    a, b = svd_projections(w, rank)
    assert a.shape == (rank, columns) and b.shape == (rows, rank)
    torch.testing.assert_close(a @ a.T, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-12)
    # Eckart-Young: the error of the best rank-r approximation is the root of the sum of the remaining squared
    # singular values; those are the eigenvalues of W W^T or W^T W, taken here without any SVD.
    double = w.double()
    gram = double @ double.T if rows <= columns else double.T @ double
    squares = torch.linalg.eigvalsh(gram).flip(0)
    rest = squares[rank:].clamp(min=0).sum().sqrt()
    torch.testing.assert_close((double - b @ a).norm(), rest, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(b.norm(dim=0), squares[:rank].sqrt(), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(1030, 1100), (1100, 1030)])
def test_large_weights_have_the_frames_that_the_whole_svd_gives(rows, columns):
    w = weight(rows, columns)
    a, b = svd_projections(w, 5)
    left, values, right = torch.linalg.svd(w.double(), full_matrices=False)
    expected = fix_signs(left[:, :5] * values[:5], right[:5])
    torch.testing.assert_close(a, expected[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(b, expected[1], rtol=1e-10, atol=1e-10)
    assert hash_projections([("x", a, b)]) == hash_projections([("x", *expected)])


@pytest.mark.slow
def test_large_weights_whose_singular_values_fall_off_are_still_exact():
    """The fourth is a thousandth of the first: squared, half of float64's digits would be gone."""
    left, right = (torch.linalg.qr(weight(size, 6).double()).Q for size in (1030, 1100))
    w = left * torch.tensor([1.0, 0.5, 0.1, 1e-3, 1e-4, 1e-5], dtype=torch.float64) @ right.T
    a, b = svd_projections(w, 4)
    torch.testing.assert_close(
        b.norm(dim=0), torch.tensor([1.0, 0.5, 0.1, 1e-3], dtype=torch.float64), rtol=1e-9, atol=0
    )
    torch.testing.assert_close((a @ right).abs()[:, :4], torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-10)
    with pytest.raises(AdapterError, match="rank is 6"):
        svd_projections(w, 7)


def test_signs_do_not_depend_on_the_svd(monkeypatch):
    w = weight(8, 5)
    expected = svd_projections(w, 4)
    real = torch.linalg.svd
    flips = [torch.tensor([1.0, -1, 1, -1, 1]), torch.tensor([-1.0, -1, -1, 1, 1])]
    for flip in flips:

        def flipped(matrix, full_matrices, flip=flip):
            left, values, right = real(matrix, full_matrices=full_matrices)
            return left * flip, values, right * flip[:, None]

        monkeypatch.setattr(torch.linalg, "svd", flipped)
        a, b = svd_projections(w, 4)
        assert torch.equal(a, expected[0]) and torch.equal(b, expected[1])
    largest = expected[0].abs().argmax(dim=1)
    assert (expected[0][torch.arange(4), largest] > 0).all()


def test_ties_go_to_the_first_entry_also_when_rounding_breaks_them():
    a = torch.tensor([[-0.5, 0.5, 0.5, -0.5], [-0.5, 0.5, -0.5, 0.5 + 1e-9]], dtype=torch.float64)
    b = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    fixed_a, fixed_b = fix_signs(b, a)
    assert (fixed_a[:, 0] > 0).all()
    torch.testing.assert_close(fixed_b @ fixed_a, b @ a)


def test_what_has_no_frames_is_refused():
    with pytest.raises(AdapterError, match="1 to 3"):
        svd_projections(weight(3, 5), 4)
    with pytest.raises(AdapterError, match="NaN"):
        svd_projections(torch.full((3, 3), torch.nan), 1)
    with pytest.raises(AdapterError, match="numerical rank is 0"):
        svd_projections(torch.zeros(3, 3), 1)
    with pytest.raises(AdapterError, match="at most 2"):
        svd_projections(weight(5, 2) @ weight(2, 5), 3)


def test_conv1d_frames_are_those_of_the_transposed_weight(family):
    for _, layer in adapted_layers(family.adapted(train="core")):
        base = layer.get_base_layer()
        w0 = base.weight.T if family.name == "gpt2" else base.weight
        a, b, _ = layer.factors("default")
        expected_a, expected_b = svd_projections(w0, 4)
        assert torch.equal(a, expected_a.float()) and torch.equal(b, expected_b.float())


def test_equal_bases_have_equal_hashes_and_others_do_not(family):
    first = frames_hash(family.adapted(train="core"))
    assert len(first) == 64
    assert frames_hash(family.adapted(train="core", seed=9)) == first  # no randomness in the frames
    assert frames_hash(family.adapted(train="core", r=3)) != first
    assert frames_hash(family.adapted(family.base(seed=1), train="core")) != first
    changed = family.base()
    target = next(m for n, m in changed.named_modules() if n.endswith(family.targets[1]))
    with torch.no_grad():
        target.weight[0, 0] += 0.05
    assert frames_hash(family.adapted(changed, train="core")) != first


def test_training_the_core_leaves_the_hash(bert, loss):
    model = bert.adapted(train="core")
    before = frames_hash(model)
    optimiser = torch.optim.AdamW(model.parameters(), 0.1)
    loss(model).backward()
    optimiser.step()
    assert frames_hash(model) == before


def test_the_hash_sees_scale_and_name_but_not_order_or_rounding():
    a, b = svd_projections(weight(6, 6), 3)
    one = hash_projections([("x", a, b), ("y", a, b)])
    assert hash_projections([("y", a, b), ("x", a, b)]) == one
    assert hash_projections([("x", a * (1 + 1e-9), b * (1 - 1e-9)), ("y", a.float(), b.float())]) == one
    assert hash_projections([("x", a, b), ("z", a, b)]) != one
    assert hash_projections([("x", a, 2 * b), ("y", a, b)]) != one
    assert hash_projections([]) == hashlib.sha256().hexdigest()


def test_only_frozen_frames_have_a_hash(bert):
    with pytest.raises(AdapterError, match="train='core'"):
        frames_hash(bert.adapted(train="all"))
    with pytest.raises(AdapterError, match="'other'"):
        frames_hash(bert.adapted(train="core"), "other")
