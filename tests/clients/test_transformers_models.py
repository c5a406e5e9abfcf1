"""Which architectures of transformers run with attn_implementation="fusestep", and what the others say."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from exactness import assert_as_exact

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is to be fetched

import fusestep.integrations.transformers as integration
import tiny_transformers as tiny
from transformers import AttentionInterface

PAGE = Path(__file__).parents[2] / "docs/transformers.md"

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, of configurations this small


@pytest.fixture
def calls():
    """How often a layer has asked for fusestep's attention."""
    count = [0]

    def counted(*args, **kwargs):
        count[0] += 1
        return integration.attention_forward(*args, **kwargs)

    AttentionInterface.register(integration.NAME, counted)
    yield count
    AttentionInterface.register(integration.NAME, integration.attention_forward)


@pytest.mark.parametrize("architecture", tiny.WORKS)
def test_the_same_outputs_as_eager_with_padding(architecture, calls):
    with torch.no_grad():
        truth = tiny.outputs(tiny.make(architecture, "eager", torch.float64))
        naive = tiny.outputs(tiny.make(architecture, "eager"))
        assert calls == [0]
        ours = tiny.outputs(tiny.make(architecture, "fusestep"))
    assert calls[0] > 0
    assert_as_exact(ours, naive, truth)


@pytest.mark.parametrize("architecture", ["bert", "bart", "llama", "t5", "mixtral"])
def test_the_same_gradients(architecture):
    def gradients(model):
        tiny.outputs(model).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    truth = gradients(tiny.make(architecture, "eager", torch.float64))
    naive, ours = (gradients(tiny.make(architecture, kind)) for kind in ("eager", "fusestep"))
    assert_as_exact(ours, naive, truth)


@pytest.mark.parametrize("architecture", tiny.REFUSED)
def test_a_model_that_would_misread_the_mask_is_refused(architecture):
    model = tiny.make(architecture, "fusestep")
    with torch.no_grad(), pytest.raises(ValueError, match=r"attn_implementation: expected .*, got \w+\. Use"):
        tiny.outputs(model)


@pytest.mark.parametrize("architecture", tiny.SINKS)
def test_sinks_are_refused(architecture):
    model = tiny.make(architecture, "fusestep")
    with torch.no_grad(), pytest.raises(ValueError, match="s_aux: expected None, got attention sinks"):
        tiny.outputs(model)


@pytest.mark.parametrize("architecture", ["falcon", "gpt_neo"])
def test_tables_of_names_end_before_our_code(architecture):
    """If this fails, these models can move to the list of those that work."""
    with pytest.raises(KeyError, match="fusestep"):
        tiny.make(architecture, "fusestep")


def test_the_page_lists_what_is_tested():
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    listed = {
        section.splitlines()[0]: re.findall(r"`([\w.-]+)`", section.split("\n\n")[1]) for section in sections[1:5]
    }
    assert listed == {
        "They work": sorted(tiny.WORKS),
        "They are refused": sorted(tiny.REFUSED),
        "Attention sinks": sorted(tiny.SINKS),
        "They look their attention up in a table of names": sorted(tiny.TABLES),
    }
