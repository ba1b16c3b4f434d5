"""/tokenize, /detokenize and /tokenizer_info: the run's tokenizer over HTTP, in the form of vLLM's
server.

lm-eval's `local-completions` uses them with `tokenizer_backend=remote`, and then needs no copy of
the tokenizer.
"""

import dataclasses
from typing import Any

from bigmodel_jax.serve.refused import Refused
from bigmodel_jax.serve.served import Served


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """The body of /tokenize."""

    prompt: str
    model: str = ""  # empty: the run itself
    add_special_tokens: bool = True  # begin with the token that /v1/completions puts first


@dataclasses.dataclass(frozen=True)
class Detokenize:
    """The body of /detokenize."""

    tokens: tuple[int, ...]
    model: str = ""


def tokenize(served: Served, asked: Tokenize) -> dict[str, Any]:
    """The tokens of a text. Names of special tokens in it become those tokens."""
    served.known_writer(asked.model or served.names[0])
    with served.encoder() as tokenizer:
        ids = tokenizer.encode_rendered(asked.prompt)[0]
    # An encoder-decoder's prompt goes to the encoder, which begins with no start token.
    if asked.add_special_tokens and served.model.decoder_start is None:
        ids = [tokenizer.start, *ids]
    return {"tokens": ids, "count": len(ids), "max_model_len": served.length}


def detokenize(served: Served, asked: Detokenize) -> dict[str, str]:
    """The text of tokens, with the names of special tokens."""
    served.known_writer(asked.model or served.names[0])
    vocab = served.config.model.vocab_size
    wrong = next((i for i in asked.tokens if not 0 <= i < vocab), None)
    if wrong is not None:
        raise Refused(f"tokens holds {wrong}; the vocabulary has {vocab}", "tokens")
    return {"prompt": served.tokenizer.model.decode(list(asked.tokens), skip_special_tokens=False)}


def info(served: Served) -> dict[str, Any]:
    """The tokenizer's settings: first and last token, chat template, and longest text."""
    served.known_writer(served.names[0])
    tokenizer = served.tokenizer
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.model.id_to_token(tokenizer.start),
        "eos_token": tokenizer.model.id_to_token(tokenizer.separator),
        "chat_template": served.template or None,
        "model_max_length": served.length,
    }
