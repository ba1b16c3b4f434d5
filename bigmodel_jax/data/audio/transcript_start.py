"""The start tokens of Whisper's decoder, found by their names in the tokenizer."""

from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

START, END, NO_TIMES, SILENT = (
    "<|startoftranscript|>",
    "<|endoftext|>",
    "<|notimestamps|>",
    ("<|nospeech|>", "<|nocaptions|>"),
)
TASKS = ("transcribe", "translate")
# English-only models have GPT-2's vocabulary, where "<|endoftext|>" is the last token, number
# 50256. In multilingual models its number is one higher.
END_OF_ENGLISH = 50_256
TIME = 0.02  # seconds between two neighbouring timestamp tokens


def multilingual(tokenizer: Tokenizer) -> bool:
    """Tell whether a Whisper tokenizer belongs to a multilingual model."""
    return tokenizer.control.get(END) not in (None, END_OF_ENGLISH)


def start(tokenizer: Tokenizer, language: str = "", task: str = "transcribe", *, times: bool = False) -> list[int]:
    """Return the token ids that begin a transcript.

    A tokenizer without Whisper's special tokens gives its own start token. `times` says that
    timestamp tokens follow, so the token "<|notimestamps|>" is left out. Raises ValueError for a
    language or task that the model does not have.
    """
    names = tokenizer.control
    if START not in names:
        return [tokenizer.start]
    found = [names[START]]
    if multilingual(tokenizer):
        known = languages(tokenizer)
        if language not in known:
            raise ValueError(
                f"--language = {language!r}{nearest(language, known)}; it must be one of {', '.join(known)}"
            )
        found += [names[f"<|{language}|>"], names[f"<|{task}|>"]]
    elif language not in ("", "en") or task != "transcribe":
        raise ValueError(f"--language = {language!r}, --task = {task!r}: this model transcribes English alone")
    return found if times else [*found, names[NO_TIMES]]


def languages(tokenizer: Tokenizer) -> list[str]:
    """Return the codes of the model's languages.

    They are the tokens with alphabetic names between "<|startoftranscript|>" and the task tokens.
    """
    names = {i: name for name, i in tokenizer.control.items()}
    codes = [names[i][2:-2] for i in range(tokenizer.control[START] + 1, tokenizer.control["<|translate|>"])]
    return sorted(code for code in codes if code.isalpha())
