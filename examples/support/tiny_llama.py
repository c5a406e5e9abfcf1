"""In place of your model and its tokenizer: a Llama of two layers with random weights, and a token for each letter."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_tokenizer(**options):
    letters = Tokenizer(models.WordLevel({token: i for i, token in enumerate(["<pad>", "<eos>", ">", *LETTERS])}))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>", **options)


def make_config(tokenizer, **options):
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **options,
    )  # fmt: skip
