"""``attn_implementation="fusestep"`` for Hugging Face transformers. Importing this module registers it::

    import fusestep.integrations.transformers
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="fusestep")

Every model that goes through transformers' attention interface can use it, in training (dropout and masks together
stay on the fast kernels) and with a key-value cache. Heads that share keys and values are not repeated. The mask is the
one that transformers makes for "sdpa"; a query with no key left gives zeros. docs/transformers.md lists the models that
were tested, those that are refused, and those that never ask for another attention than their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusestep._refusal import refuse
from fusestep.nn.functional import attention

try:
    from transformers import MODEL_MAPPING, AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
except ImportError as missing:
    raise ImportError(
        "fusestep.integrations.transformers: expected transformers with an attention interface (5.0 or later), got: "
        f"{missing}. Try: pip install 'fusestep[transformers]'"
    ) from missing

__all__ = ["NAME", "attention_forward", "attention_mask"]

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


# Configurations whose models were found to go through the attention interface.
_checked: set[type] = set()


def _check_model(config: Any) -> None:
    """Refuses a model that does not declare that its attention can be exchanged.

    Such a model gives the boolean mask of the interface to attention code of its own, which adds it to the scores: the
    results would be wrong without any error.
    """
    kind = type(config)
    if kind in _checked:
        return
    models = MODEL_MAPPING.get(kind, None)  # None: a part of a larger model, or code from outside transformers
    for model in models if isinstance(models, tuple) else (models,):
        if model is not None and not (model._supports_sdpa or model._supports_attention_backend):
            refuse(
                "fusestep attention",
                "attn_implementation",
                "a model that declares support for other attention implementations (_supports_sdpa)",
                model.__name__,
                'Use attn_implementation="eager".',
            )
    _checked.add(kind)


def attention_mask(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | None:
    """What transformers calls for the mask of a model: the mask of "sdpa", boolean (B, 1, Sq, Sk), True: attend.

    Raises:
        ValueError: the model does not support exchanging its attention.
    """
    if config is not None:
        _check_model(config)
    mask: Tensor | None = sdpa_mask(*args, config=config, **kwargs)
    return mask


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, attention_mask)
