"""fusestep.ops.cross_entropy against the float64 reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attention_runs import DTYPES
from cross_entropy_runs import assert_as_reference, draw
from fusestep import ops

OPTIONS = {"ignore_index": 3, "label_smoothing": 0.1, "z_loss": 1e-2}


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_option_together(dtype, reduction):
    logits, labels = draw(7, 2500, dtype)
    labels[2] = 3
    assert_as_reference(logits, labels, dtype, reduction=reduction, **OPTIONS)
    assert_as_reference(logits, labels, dtype, reduction=reduction)


@pytest.mark.parametrize("classes", [1, 2, 15, 31, 32, 33, 1023, 1024, 1025, 2080])
def test_sizes_and_layouts(classes):
    logits, labels = draw(4, classes)
    for layout in ("contiguous", "transposed", "strided"):
        assert_as_reference(logits, labels, "float32", layout=layout, label_smoothing=0.2)


def test_over_the_logits_themselves_and_any_number_of_threads(threads):
    logits, labels = draw(9, 1500)
    grad = np.empty((9, 1500), np.float32)
    first = logits.astype(np.float32)
    threads(1)
    loss, lse = ops.cross_entropy(first.copy(), labels, grad=grad, **OPTIONS)
    threads(3)
    again = ops.cross_entropy(first, labels, grad=first, **OPTIONS)
    for got, want in zip((*again, first), (loss, lse, grad), strict=True):
        np.testing.assert_array_equal(got, want)


def test_ignored_rows_empty_arrays_and_infinities():
    logits = np.full((3, 1100), -math.inf, np.float32)
    logits[:, 1050:] = 1e30
    loss, lse = ops.cross_entropy(logits, np.array([1060, -100, 0]), reduction="none")
    np.testing.assert_array_equal(loss, np.float32([math.log(50), 0, math.inf]) * [0, 1, 1])
    assert lse[0] == np.float32(1e30)
    grad = np.ones_like(logits)
    assert math.isnan(ops.cross_entropy(logits, np.full(3, -100), grad=grad)[0])
    assert not grad.any()
    assert math.isnan(ops.cross_entropy(logits[:0], np.zeros(0, np.int64))[0])
    assert math.isnan(ops.cross_entropy(np.full((1, 5), -math.inf), np.array([1]))[0])  # as torch's: 0 / 0


@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_a_label_out_of_range_is_refused_before_anything_is_written(label):
    logits = torch.zeros(3, 5)
    with pytest.raises(ValueError, match=r"^cross_entropy: labels\[2\]: expected a class from 0 to 4, or ignore_index"):
        ops.cross_entropy(logits, torch.tensor([0, 1, label]), grad=logits)
    assert not logits.any()
