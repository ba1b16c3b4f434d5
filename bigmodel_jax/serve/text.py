"""Turns the tokens of a growing text into text.

No character is split between two pieces, and no part of a stop string is given out.
"""

from collections.abc import Sequence

from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, byte_characters

TORN = "\ufffd"  # what the decoder writes for bytes that are not (or not yet) a character
MOST_HELD = 256  # tokens to wait for a complete character; then invalid bytes are given out as TORN


class Pieces:
    """The text of a growing list of tokens, piece by piece. The pieces together are the whole text.

    Each token decodes again the tokens of the last piece and those after it. The tokenizer thus
    sees the context of the new token, and the work per token does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._decode, self._ids = tokenizer.decode, []
        self._begin, self._end = 0, 0  # the tokens of the last piece

    def add(self, token: int) -> str:
        """The text that no later token can change; "" while a character is incomplete."""
        self._ids.append(token)
        before, now = self._both()
        # Text that ends in TORN may change with the next token, so it waits.
        if len(now) <= len(before) or (now.endswith(TORN) and len(self._ids) - self._end < MOST_HELD):
            return ""
        self._begin, self._end = self._end, len(self._ids)
        return now[len(before) :]

    def rest(self) -> str:
        """The remaining text when no token follows."""
        before, now = self._both()
        return now[len(before) :]

    def _both(self) -> tuple[str, str]:
        # Tokenizers may drop a space at the start of a text, so a token is decoded together with
        # those before it.
        return self._decode(self._ids[self._begin : self._end]), self._decode(self._ids[self._begin :])


class Stops:
    """Passes text on up to the first stop string, which is left out.

    Text that may be the beginning of a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held, self.found = tuple(stops), "", ""

    def add(self, text: str) -> str:
        """The text that cannot belong to a stop string.

        `found` becomes the stop string that was met.
        """
        self._held += text
        places = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            at, self.found = min(places)
            out, self._held = self._held[:at], ""
            return out
        keep = max((self._begun(stop) for stop in self._stops), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def rest(self) -> str:
        """The text that was held back, when no more text follows."""
        out, self._held = self._held, ""
        return out

    def _begun(self, stop: str) -> int:
        """The length of the longest suffix of the held text that is a prefix of `stop`."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)


class Spelling:
    """Spells single tokens as text and as bytes, for log probabilities."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        byte_level = "ByteLevel" in str(tokenizer.model.decoder)
        self._bytes = {c: b for b, c in enumerate(byte_characters())} if byte_level else {}

    def text(self, token: int) -> str:
        r"""The token as text.

        An incomplete character is written as bytes:\xf0\x9f, as OpenAI does, so that different
        tokens look different.
        """
        text = self._tokenizer.model.decode([token], skip_special_tokens=False)
        return "bytes:" + "".join(f"\\x{b:02x}" for b in self._own(token)) if TORN in text else text

    def bytes(self, token: int) -> bytes:
        """The token's own bytes, which need not be a whole character."""
        return self._own(token) or self.text(token).encode()

    def _own(self, token: int) -> bytes:
        """The bytes of a byte-level token; b"" for a token of another kind."""
        name = self._tokenizer.model.id_to_token(token) or ""
        return bytes(self._bytes[c] for c in name) if all(c in self._bytes for c in name) else b""
