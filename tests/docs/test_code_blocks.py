"""Every Python block of the documentation runs, page by page, in one namespace a page.

A block that cannot run here has a comment above it, which says why: ``<!-- skip: next "reason" -->``.
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from unittest import SkipTest

import pytest
import torch

sybil = pytest.importorskip("sybil", reason="sybil is not installed: pip install '.[test]'")
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def readme_names():
    """What the README's blocks take as given: a program that has a model and its data."""
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained("tiny")

    model = torch.nn.Linear(4, 3)
    batch = torch.randn(2, 4), torch.tensor([0, 2])
    heads, tokens, vocabulary = 4, 32, 64
    hidden, head = torch.randn(tokens, 8), torch.nn.Linear(8, vocabulary, bias=False)
    batches = [batch]
    return {
        "torch": torch,
        "model": model,
        "loss": model(batch[0]).pow(2).mean(),
        "q": torch.randn(1, heads, tokens, 8),
        "k": torch.randn(1, heads, tokens, 8),
        "v": torch.randn(1, heads, tokens, 8),
        "mask": torch.ones(tokens, tokens, dtype=torch.bool),
        "lengths": torch.tensor([20]),
        "slopes": torch.linspace(0.1, 0.4, heads),
        "cu": torch.tensor([0, 12, tokens]),
        "hidden": hidden,
        "head": head,
        "logits": head(hidden),
        "target": torch.arange(tokens),
        "train": batches,
        "val": batches,
        "AutoModelForCausalLM": transformers.AutoModelForCausalLM,
        "name": "tiny",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa)  # a block replaces it
    document = sybil.Sybil([PythonCodeBlockParser(), SkipParser()], encoding="utf-8").parse(page)
    document.namespace["no_jax"] = importlib.util.find_spec("jax") is None
    given = readme_names() if page.name == "README.md" else {}
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    try:
        for example in document.examples():
            document.namespace.update(given)
            with contextlib.suppress(SkipTest):  # of the block, not the page
                example.evaluate()
    finally:
        torch.random.set_rng_state(state)
        torch.set_num_threads(threads)
