"""What data sets in a model's own tokens share: tokenizer.json, and optionally a chat template."""

from pathlib import Path

from bigmodel_jax.core import files
from bigmodel_jax.data.text import chat
from bigmodel_jax.data.tokenizers.special_tokens import fingerprint
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer


class Templated:
    """Methods of data configs with tokenizer_path, template_path ("": none) and seq_len."""

    def check_files(self) -> None:
        """Raise a one-line ValueError where a file is missing."""
        for name in ("tokenizer_path", "template_path"):
            path = getattr(self, name)
            if (path or name == "tokenizer_path") and not Path(path).is_file():
                raise ValueError(f"data.{name} = {path!r}: no such file")

    def template(self) -> str:
        """Return the chat template, or "" without one."""
        return Path(self.template_path).read_text() if self.template_path else ""

    def checked_template(self, tokenizer: Tokenizer) -> str:
        """Return the template. Raises a one-line ValueError where it does not fit the tokenizer."""
        template = self.template()
        try:
            if self.template_path:
                chat.check(template, tokenizer.names())
        except ValueError as error:
            raise ValueError(f"data.template_path = {self.template_path!r}: {error}") from None
        return template

    def reads(self) -> dict[str, list[Path] | str]:
        found = super().reads()
        # The files beside tokenizer.json change tokens, too, so a digest of all replaces the path.
        return found | {name: fingerprint(found[name][0]) for name in found.keys() & {"data.tokenizer_path"}}

    def requirements(self) -> dict:
        return {"vocab_size": self.open_tokenizer().vocab_size, "max_seq_len": self.seq_len}

    def open_tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_path)

    def save_artifacts(self, folder: Path) -> None:
        self.open_tokenizer().save(folder / "tokenizer.json")
        if self.template_path:
            files.replace(folder / "chat_template.jinja", self.template())
