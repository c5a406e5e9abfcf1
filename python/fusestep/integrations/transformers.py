"""``attn_implementation="fusestep"`` for Hugging Face transformers. Importing this module registers it::

    import fusestep.integrations.transformers
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="fusestep")

Every model that goes through transformers' attention interface can use it, in training (dropout and masks together
stay on the fast kernels) and with a key-value cache. Heads that share keys and values are not repeated. What a query
may look at is what transformers says for "sdpa"; a query with nothing to look at gives zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusestep._refusal import refuse
from fusestep.nn.functional import attention

try:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
except ImportError as missing:
    raise ImportError(
        "fusestep.integrations.transformers: expected transformers with an attention interface (5.0 or later), got: "
        f"{missing}. Try: pip install 'fusestep[transformers]'"
    ) from missing

__all__ = ["NAME", "attention_forward"]

NAME = "fusestep"


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    output_attentions: bool | None = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for the attention of a layer.

    Args:
        module: the layer; its ``is_causal`` counts where the argument is None (and True where it has none).
        query: (B, H, Sq, D).
        key, value: (B, Hkv, Sk, D).
        attention_mask: broadcastable to (B, H, Sq, Sk), boolean (True: attend) or additive. It holds sliding windows,
            padding and whatever else the model asks for; None: nothing but causality, counted from the first key.
        dropout: of the weights.
        scaling: of the scores, default 1 / sqrt(D).
        is_causal: whether queries see no later keys, where there is no mask and more than one query.
        softcap: of the scores.
        position_bias: added to the scores, with a gradient.

    Returns:
        (B, Sq, H, D), and None in the place of the weights, which never exist.

    Raises:
        ValueError: attention sinks (``s_aux``) or the weights are asked for.
    """
    if s_aux is not None:
        refuse("fusestep attention", "s_aux", "None", "attention sinks", 'Use attn_implementation="eager".')
    if output_attentions:
        refuse("fusestep attention", "output_attentions", "False", "True", 'Use attn_implementation="eager".')
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask = attention_mask
    if position_bias is not None:
        if mask is None:
            mask = position_bias
        elif mask.dtype == torch.bool:
            mask = torch.where(mask, position_bias, -torch.inf)
        else:
            mask = mask + position_bias
    out = attention(
        query,
        key,
        value,
        mask=mask,
        causal=bool(causal) and attention_mask is None and query.shape[2] > 1,
        softcap=softcap,
        scale=scaling,
        dropout_p=dropout,
    )
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
