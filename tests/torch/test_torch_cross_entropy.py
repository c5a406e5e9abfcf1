"""fusestep.nn.functional.cross_entropy and linear_cross_entropy against torch's."""

from __future__ import annotations

import sys

import fusestep.nn.functional as F
import pytest
import torch
from fusestep.nn import CrossEntropyLoss
from torch import nn
from torch.autograd import gradcheck


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype).requires_grad_()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradients(reduction):
    labels = torch.tensor([1, 0, -100, 4])

    def loss(x):
        return F.cross_entropy(x, labels, reduction=reduction, label_smoothing=0.1, z_loss=0.01)

    assert gradcheck(loss, draw(4, 5))


def test_over_the_logits():
    labels, x = torch.tensor([1, 0, -100, 4]), draw(4, 5)
    (want,) = torch.autograd.grad(torch.nn.functional.cross_entropy(x, labels) * 3, x)
    logits = x * 1.0
    (got,) = torch.autograd.grad(F.cross_entropy(logits, labels, overwrite_logits=True) * 3, x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(logits.detach() * 3, want)
    for refused in (x, x.view(4, 5), x[:, :]):
        with pytest.raises(RuntimeError, match="cross_entropy: input: expected a tensor that may be changed in place"):
            F.cross_entropy(refused, labels, overwrite_logits=True)
    # A view of what a layer gives, as most models make.
    x, layers = x.detach().requires_grad_(), draw(5, 5)
    logits = (x @ layers).view(2, 2, 5)
    got = torch.autograd.grad(F.cross_entropy(logits.view(-1, 5), labels, overwrite_logits=True), (x, layers))
    want = torch.autograd.grad(F.cross_entropy(x @ layers, labels), (x, layers))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_the_kernel_does_not_take_is_torchs():
    x, labels = draw(3, 5, 2), torch.tensor([[0, 1], [2, 3], [4, -100]])
    weight = torch.rand(5, dtype=torch.float64)
    got = F.cross_entropy(x, labels, weight, z_loss=0.0)
    assert torch.equal(got, torch.nn.functional.cross_entropy(x, labels, weight))
    soft = torch.rand(4, 5, dtype=torch.float64).softmax(-1)
    y = draw(4, 5)
    assert torch.equal(F.cross_entropy(y, soft), torch.nn.functional.cross_entropy(y, soft))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 5, 3)])
def test_z_loss_of_torchs_operations_is_the_kernels(shape, reduction):
    x = draw(*shape)
    classes_last = x.movedim(0 if len(shape) == 1 else 1, -1).reshape(-1, 5)
    labels = torch.tensor([1, 0, -100, 4, 2, 3])[: len(classes_last)]
    target = labels.reshape(shape[:1] + shape[2:] if len(shape) > 1 else ())
    rule = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.5}
    want = F.cross_entropy(classes_last, labels, **rule)
    got = torch.compile(CrossEntropyLoss(**rule), backend="eager")(x, target)  # compiled code is torch's operations
    torch.testing.assert_close(got, want.reshape(got.shape))
    (slope,) = torch.autograd.grad(got.sum(), x)
    torch.testing.assert_close(slope, torch.autograd.grad(want.sum(), x)[0])


def test_an_ignored_row_of_infinities_has_no_gradient():
    x = torch.full((2, 5, 1), float("inf"), dtype=torch.float64)
    x[0] = 0.5
    x.requires_grad_()
    loss = F.cross_entropy(x, torch.tensor([[1], [-100]]), z_loss=0.1)
    (slope,) = torch.autograd.grad(loss, x)
    assert bool(loss.isfinite())
    assert bool(slope[0].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_linear_cross_entropy(monkeypatch, dtype, reduction):
    # Three chunks, the last of one row.
    module = sys.modules["fusestep.nn._ops.linear_cross_entropy"]
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 0)
    monkeypatch.setattr(module, "LEAST_ROWS", 4)
    rule = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.01, "ignore_index": 3}
    exact = [draw(3, 3, 7), draw(11, 7), draw(11)]
    x, weight, bias = (t.detach().to(dtype).requires_grad_() for t in exact)
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    target = torch.tensor([[1, 0, 3], [4, 10, 3], [2, 2, 5]])
    got = F.linear_cross_entropy(x, weight, target, bias, **rule)
    logits = nn.functional.linear(*wide).flatten(0, 1)
    want = F.cross_entropy(logits, target.flatten(), **rule)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # A logit has 7 products and a bias, rounded to dtype once more when stored; the loss moves with a logit by at most
    # 2 + 0.02 lse a row.
    u = torch.finfo(dtype).eps / 2
    sizes = nn.functional.linear(wide[0].abs(), wide[1].abs(), wide[2].abs()).flatten(0, 1).amax(1).detach()
    rows = (target.flatten() != 3).sum() if reduction == "mean" else 1
    bound = float((2.2 * 10 * u * sizes).sum() / rows) + 8 * torch.finfo(got.dtype).eps * float(want.detach().abs())
    assert abs(float(got.detach()) - float(want.detach())) <= bound
    slopes = torch.autograd.grad(3 * got, (x, weight, bias))
    wants = torch.autograd.grad(3 * want, wide)
    for slope, expected in zip(slopes, wants, strict=True):
        assert slope.dtype == dtype
        # Of a softmax, twice the error of the logits; then a product of at most 11 or 9 terms, no greater than 3 each.
        limit = 3 * 3 * (2.2 * 10 * float(sizes.max()) + 13) * u * 9
        assert float((slope.double() - expected).abs().max()) <= limit


def test_linear_cross_entropy_by_gradcheck_and_some_inputs_alone():
    x, weight, target = draw(3, 4), draw(5, 4), torch.tensor([1, -100, 4])
    assert gradcheck(lambda x, weight: F.linear_cross_entropy(x, weight, target, z_loss=0.1), (x, weight))
    assert gradcheck(lambda weight: F.linear_cross_entropy(x.detach(), weight, target), (weight,))
    with torch.no_grad():
        torch.testing.assert_close(
            F.linear_cross_entropy(x, weight, target), F.cross_entropy(x @ weight.t(), target), rtol=1e-14, atol=0
        )


def test_linear_cross_entropy_of_ignored_rows_alone():
    x, weight = draw(2, 4), draw(5, 4)
    loss = F.linear_cross_entropy(x, weight, torch.tensor([-100, -100]))
    assert bool(loss.isnan())
    assert not any(bool(g.any()) for g in torch.autograd.grad(loss, (x, weight)))


def test_linear_cross_entropy_under_transforms_and_compile():
    x, weight, target = draw(3, 4), draw(5, 4), torch.tensor([1, 2, 4])
    want = torch.autograd.grad(F.linear_cross_entropy(x, weight, target), weight)[0]
    got = torch.func.grad(lambda weight: F.linear_cross_entropy(x, weight, target))(weight)
    torch.testing.assert_close(got, want)
    per_sample = torch.func.vmap(
        torch.func.grad(lambda weight, x, target: F.cross_entropy(x[None] @ weight.t(), target[None])), (None, 0, 0)
    )(weight, x, target)
    torch.testing.assert_close(per_sample.mean(0), want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reduction": "none"}, ValueError, "reduction: expected one of mean, sum, got 'none'"),
        ({"z_loss": -1.0}, ValueError, "z_loss: expected a finite number >= 0, got -1.0"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing: expected a probability"),
        ({"target": torch.tensor([1.0, 2.0])}, TypeError, "target: expected int64 class indices, got torch.float32"),
        ({"target": torch.tensor([1])}, ValueError, r"target: expected the shape \(2,\) .*, got \(1,\)"),
        ({"target": torch.tensor([1, 5])}, ValueError, "target: expected classes from 0 to 4, or .*, got 5"),
    ],
)  # fmt: skip
def test_linear_cross_entropy_refuses(change, error, message):
    arguments = {"input": draw(2, 4), "weight": draw(5, 4), "target": torch.tensor([1, 2]), **change}
    with pytest.raises(error, match=rf"^linear_cross_entropy: {message}"):
        F.linear_cross_entropy(**arguments)


def test_module_is_torchs():
    x, weight = draw(4, 5), torch.rand(5, dtype=torch.float64)
    options = {"weight": weight, "ignore_index": 2, "label_smoothing": 0.3, "reduction": "sum"}
    target = torch.tensor([1, 2, 4, 0])
    assert torch.equal(CrossEntropyLoss(**options)(x, target), nn.CrossEntropyLoss(**options)(x, target))
    with pytest.raises(ValueError, match="CrossEntropyLoss: z_loss: expected a finite number >= 0, got -1"):
        CrossEntropyLoss(z_loss=-1)


def test_the_question_of_a_fine_tuning_example_has_no_gradient():
    logits = draw(6, 5)
    answer = torch.tensor([-100, -100, -100, 2, 0, 4])  # three tokens of question, three of answer
    loss = F.cross_entropy(logits, answer)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits[3:], answer[3:]))
    (slope,) = torch.autograd.grad(loss, logits)
    assert not slope[:3].any()
    assert slope[3:].all()
