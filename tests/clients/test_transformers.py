"""attn_implementation="fusestep" against transformers' "eager" and "sdpa", on small models with random weights."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from exactness import assert_all_as_exact, assert_as_exact

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is to be fetched

import fusestep.integrations.transformers as integration
import transformers

BATCH, LENGTH, VOCABULARY, NEW = 3, 11, 50, 6


def gpt2(dropout):
    return transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=24, n_layer=2, n_head=3,
        attn_pdrop=dropout, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def llama(dropout):
    """Six query heads over two key heads."""
    return transformers.LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=32, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, attention_dropout=dropout, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip


def mistral(dropout):
    """A sliding window of four."""
    return transformers.MistralConfig(
        vocab_size=VOCABULARY, max_position_embeddings=32, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=4, attention_dropout=dropout, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip


CONFIGS = {"GPT-2": gpt2, "Llama": llama, "Mistral": mistral}
by_name = pytest.mark.parametrize("name", CONFIGS)


def model(name, implementation, dtype=torch.float32, dropout=0.0):
    torch.manual_seed(0)
    config = CONFIGS[name](dropout)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():  # as they are drawn, the scores would all be nearly zero
            if parameter.dim() == 2:
                parameter.mul_(8)
    assert made.config._attn_implementation == implementation
    return made.eval()


def tokens(length=LENGTH):
    return torch.randint(1, VOCABULARY, (BATCH, length), generator=torch.Generator().manual_seed(1))


def padding(side):
    present = torch.ones(BATCH, LENGTH, dtype=torch.long)
    if side == "left":
        present[1, :4] = 0
        present[2, :1] = 0
    elif side == "right":
        present[1, 7:] = 0
        present[2, 10:] = 0
    return present


def outcome(made, present):
    """Logits where there is something to attend to, and the gradients of a loss of those."""
    made.zero_grad()
    logits = made(tokens(), attention_mask=present).logits[present.bool()]
    logits.square().mean().backward()
    return [logits.detach(), *(parameter.grad for parameter in made.parameters())]


# Where "eager" itself gives NaN: a query has nothing to attend to, and its scores plus the least float are -inf.
EAGER_IS_NAN = {("Llama", "left"), ("Mistral", "left"), ("Mistral", "right")}


@pytest.mark.parametrize(
    ("name", "side", "peer"),
    [
        (name, side, peer)
        for name in CONFIGS
        for side in ("none", "left", "right")
        for peer in ("eager", "sdpa")
        if peer == "sdpa" or (name, side) not in EAGER_IS_NAN
    ],
)
def test_same_logits_and_gradients(name, side, peer):
    present = padding(side)
    truth = outcome(model(name, peer, torch.float64), present)
    naive = outcome(model(name, peer), present)
    ours = outcome(model(name, "fusestep"), present)
    assert_as_exact(ours[0], naive[0], truth[0])
    assert_all_as_exact(ours, naive, truth)


@by_name
@pytest.mark.parametrize("side", ["none", "left"])
def test_same_with_a_cache(name, side):
    """A prompt, then one token after another: one query, many keys."""
    present = padding(side)
    text = torch.cat([tokens(), tokens(NEW)], dim=1)

    def logits(made):
        grown, cache, results = present, None, []
        with torch.no_grad():
            for step in range(NEW):
                inputs = text[:, :LENGTH] if step == 0 else text[:, LENGTH + step - 1 : LENGTH + step]
                positions = (grown.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
                out = made(inputs, attention_mask=grown, position_ids=positions, cache=cache, use_cache=True)
                cache = out.cache
                results.append(out.logits[:, -1])
                grown = torch.cat([grown, torch.ones(BATCH, 1, dtype=torch.long)], dim=1)
        return torch.stack(results)

    peer = "sdpa" if (name, side) in EAGER_IS_NAN else "eager"
    truth, naive = logits(model(name, peer, torch.float64)), logits(model(name, peer))
    ours = logits(model(name, "fusestep"))
    assert_as_exact(ours, naive, truth)


@by_name
def test_generates_the_same_text(name):
    texts = [
        model(name, implementation, torch.float64).generate(
            tokens(), attention_mask=padding("left"), max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
        for implementation in ("fusestep", "sdpa")
    ]
    assert torch.equal(*texts)


@by_name
def test_trains_with_dropout(name):
    made = model(name, "fusestep", dropout=0.5).train()
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(outcome(made, padding("right")))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])
    assert all(x.isfinite().all() for x in results[2])


def test_dropout_is_right_on_average():
    """The output is linear in the weights: its mean over masks is what there is without dropout."""
    made = model("Llama", "fusestep", dropout=0.2)
    layer = made.model.layers[0].self_attn
    query, key, value = torch.randn(1, 6, 8, 4), torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 4)
    torch.manual_seed(0)
    draws = torch.stack(
        [integration.attention_forward(layer, query, key, value, None, dropout=0.2)[0] for _ in range(2000)]
    ).double()
    plain = integration.attention_forward(layer, query, key, value, None)[0]
    deviation = draws.std(dim=0) / len(draws) ** 0.5
    # 192 means, each within six standard deviations; rows with a single key vary most, and none is constant.
    assert ((draws.mean(dim=0) - plain).abs() <= 6 * deviation).all()


def test_biases_and_soft_caps():
    layer = torch.nn.Module()
    layer.is_causal = True
    query = key = value = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    bias = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    seen = torch.ones(5, 5, dtype=torch.bool).tril()

    def ours(mask):
        return integration.attention_forward(layer, query, key, value, mask, position_bias=bias, softcap=3.0)[0]

    scores = 3.0 * torch.tanh(query @ key.mT / 2 / 3.0) + bias
    expected = (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)
    additive = torch.zeros(5, 5, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    for mask in (None, seen[None, None], additive[None, None]):
        torch.testing.assert_close(ours(mask), expected)
    assert torch.autograd.grad(ours(seen[None, None]).sum(), bias)[0].any()


@pytest.mark.parametrize("asked", [{"s_aux": torch.zeros(2)}, {"output_attentions": True}], ids=str)
def test_what_there_is_not_is_refused(asked):
    x = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match=f"fusestep attention: {next(iter(asked))}: expected"):
        integration.attention_forward(torch.nn.Module(), x, x, x, None, **asked)


def test_without_transformers_the_message_says_what_to_install():
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "import fusestep.nn\n"
        "try:\n    import fusestep.integrations.transformers\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "fusestep.integrations.transformers: expected transformers" in done.stdout
    assert "pip install 'fusestep[transformers]'" in done.stdout
