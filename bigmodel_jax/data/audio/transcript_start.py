"""The tokens that Whisper's decoder begins a transcript with, by the names in its tokenizer."""

from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

START, END, NO_TIMES, SILENT = (
    "<|startoftranscript|>",
    "<|endoftext|>",
    "<|notimestamps|>",
    ("<|nospeech|>", "<|nocaptions|>"),
)
TASKS = ("transcribe", "translate")
# English models have GPT-2's vocabulary, whose last token ends a text; the others have one more before it.
END_OF_ENGLISH = 50_256
TIME = 0.02  # seconds between two tokens of time


def multilingual(tokenizer: Tokenizer) -> bool:
    return tokenizer.control.get(END) not in (None, END_OF_ENGLISH)


def start(tokenizer: Tokenizer, language: str = "", task: str = "transcribe", *, times: bool = False) -> list[int]:
    """Token ids, of a tokenizer without Whisper's names its own start; ValueError for a language that the model has not.

    times: tokens of time follow, so that the one which says that there are none is left out.
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
    """Their codes: the names of two or three letters between the start and the tasks."""
    names = {i: name for name, i in tokenizer.control.items()}
    codes = [names[i][2:-2] for i in range(tokenizer.control[START] + 1, tokenizer.control["<|translate|>"])]
    return sorted(code for code in codes if code.isalpha())
