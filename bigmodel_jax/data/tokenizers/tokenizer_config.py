"""Reads tokenizer_config.json, special_tokens_map.json and added_tokens.json of a tokenizer."""

import json
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GENERIC = ("", "PreTrainedTokenizer", "TokenizersBackend")
"Tokenizer classes that do not say how a text becomes ids."
BY_MODEL_TYPE = {
    "albert": "AlbertTokenizer",
    "bart": "BartTokenizer",
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "clip": "CLIPTokenizer",
    "clip_text_model": "CLIPTokenizer",
    "deberta": "DebertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "distilbert": "DistilBertTokenizer",
    "gpt2": "GPT2Tokenizer",
    "marian": "MarianTokenizer",
    "mpnet": "MPNetTokenizer",
    "mt5": "T5Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen2_moe": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "qwen3_next": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "siglip": "SiglipTokenizer",
    "t5": "T5Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "xlnet": "XLNetTokenizer",
}
"model_type -> the class that transformers uses where tokenizer_config.json names none."
CHANGES_IDS = {
    "add_prefix_space": (None, False),
    "do_basic_tokenize": (None, True),
    "do_lower_case": (None,),
    "extra_ids": (None,),
    "keep_accents": (None,),
    "never_split": (None, []),
    "remove_space": (None,),
    "sp_model_kwargs": (None, {}),
    "split_by_punct": (None, False),
    "split_special_tokens": (None, False),
    "strip_accents": (None,),
    "tokenize_chinese_chars": (None,),
    "wordpieces_prefix": (None, "##"),
}
"""Keys that change ids -> the values that have no effect, which are allowed where a class does not
read the key."""


class Token(NamedTuple):
    """A token that a config adds. The other fields are those of `tokenizers.AddedToken`.

    `id` is None where the config does not say it.
    """

    content: str
    id: int | None = None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    def flags(self) -> dict[str, bool]:
        return {name: getattr(self, name) for name in ("special", "lstrip", "rstrip", "single_word", "normalized")}


class About(NamedTuple):
    """A tokenizer's folder and config; tokenizer_class is without "Fast", and "" where unknown."""

    folder: Path
    config: dict
    tokenizer_class: str

    def refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"{self.folder}: {what}; transformers writes a tokenizer.json, which is read instead: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )

    def check_keys(self, *used: str) -> None:
        """Raise ValueError for a key that changes ids and is not in `used`."""
        for key, plain in CHANGES_IDS.items():
            if key not in used and self.config.get(key) not in plain:
                self.refuse(f"tokenizer_config.json has {key} = {self.config[key]!r}, which is not supported here")

    def check_class(self, file: str, *known: str) -> None:
        if self.tokenizer_class and self.tokenizer_class not in known:
            self.refuse(f"{file} of a {self.tokenizer_class} is not supported (supported: {', '.join(known)})")


def read_object(path: Path) -> dict:
    """Return a file's JSON object, {} without the file. Raises ValueError for any other content."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({str(error)[:100]})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: it must hold a JSON object, and holds a {type(found).__name__}")
    return found


def read_about(folder: Path) -> About:
    """Read the config of a folder, and find its tokenizer class."""
    config = read_object(folder / "special_tokens_map.json") | read_object(folder / "tokenizer_config.json")
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    if name in GENERIC:
        name = BY_MODEL_TYPE.get(str(read_object(folder / "config.json").get("model_type")), "")
    return About(folder, config, name)


def named_tokens(about: About, defaults: dict[str, str]) -> dict[str, str]:
    """Return {"unk_token": its text, ...} from the config, with the class's defaults."""
    out = dict(defaults)
    for key in NAMED:
        value = about.config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str) and value:
            out[key] = value
    return out


def added_tokens(about: About, named: dict[str, str]) -> list[Token]:
    """Return the tokens that the folder adds, in the order in which transformers numbers them."""
    out = []
    decoder = token_decoder(about)
    # transformers reads the older file alone where there is no decoder.
    beside = {} if decoder else read_object(about.folder / "added_tokens.json")
    extra = [*_list(about, "additional_special_tokens"), *_list(about, "extra_special_tokens")]
    special = {*named.values(), *(_content(token) for token in extra)}
    try:
        # Keys of JSON are texts, and as a text "10" would come before "9".
        out += [_token(token, int(i)) for i, token in sorted(decoder.items(), key=lambda item: int(item[0]))]
        ordered = sorted(beside.items(), key=lambda item: item[1])
        out += [Token(name, i, name in special, normalized=name not in special) for name, i in ordered]
        said = [about.config[key] for key in NAMED if about.config.get(key)]
        out += [_token(token, None) for token in [*said, *extra]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        about.refuse(f"its added tokens cannot be read ({type(error).__name__}: {error})")
    # The first mention of a token decides its id and flags.
    first: dict[str, Token] = {}
    for token in out:
        first.setdefault(token.content, token)
    return list(first.values())


def token_decoder(about: About) -> dict:
    """Return the config's {id: added token with its flags}."""
    return about.config.get("added_tokens_decoder") or {}


def _list(about: About, key: str) -> list:
    found = about.config.get(key) or []
    return list(found.values() if isinstance(found, dict) else found) if isinstance(found, list | dict) else []


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _token(token: Any, token_id: int | None) -> Token:
    if isinstance(token, str):
        return Token(token, token_id)
    flags = ("lstrip", "rstrip", "single_word")
    # An entry without an id only names a special token, so it is special. An entry of a decoder has
    # a flag for this.
    special = bool(token.get("special", token_id is None)) or token_id is None
    stripped = (bool(token.get(flag, False)) for flag in flags)
    return Token(str(token["content"]), token_id, special, *stripped, bool(token.get("normalized", not special)))


def add_tokens(model: Any, about: About, defaults: dict[str, str]) -> None:
    """Add the folder's tokens to a `tokenizers.Tokenizer`.

    Raises ValueError where a token cannot get the id that the folder says.
    """
    from tokenizers import AddedToken

    named = named_tokens(about, defaults)
    own = [Token(name) for key, name in named.items() if model.token_to_id(name) is not None and key in defaults]
    said = added_tokens(about, named)
    for token in [*(t for t in own if t.content not in {s.content for s in said}), *said]:
        model.add_tokens([AddedToken(token.content, **token.flags())])
        check_id(about, token, model.token_to_id(token.content))


def check_id(about: About, token: Token, got: int) -> None:
    """Raise ValueError where an added token got another id than the folder says."""
    if token.id not in (None, got):
        about.refuse(
            f"its files give the added token {token.content!r} id {token.id}, where its vocabulary makes it {got}"
        )
