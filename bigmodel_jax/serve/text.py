"""Tokens to text as they come: no character is torn, and no stop string is given out in part."""

from collections.abc import Sequence

from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, byte_characters

TORN = "\ufffd"  # what the decoder writes for bytes that are no character, or not yet
MOST_HELD = 256  # tokens that are waited for; a model that writes no UTF-8 at all is given out so


class Pieces:
    """The text of a growing list of tokens, piece by piece; all pieces together are the whole text.

    What is decoded again with each token begins at the piece before the last, so that the tokenizer sees what stands in
    front of it, and a long text takes no longer for each token than a short one.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._decode, self._ids = tokenizer.decode, []
        self._begin, self._end = 0, 0  # the tokens of the last piece

    def add(self, token: int) -> str:
        """The text that is sure with this token; "" while a character is incomplete."""
        self._ids.append(token)
        before, now = self._both()
        if len(now) <= len(before) or (now.endswith(TORN) and len(self._ids) - self._end < MOST_HELD):
            return ""
        self._begin, self._end = self._end, len(self._ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What is left when no token follows."""
        before, now = self._both()
        return now[len(before) :]

    def _both(self) -> tuple[str, str]:
        return self._decode(self._ids[self._begin : self._end]), self._decode(self._ids[self._begin :])


class Stops:
    """Text up to the first stop string, which is left out; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held, self.found = tuple(stops), "", ""

    def add(self, text: str) -> str:
        """What is sure not to belong to a stop string; `found` is the one that was met."""
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
        out, self._held = self._held, ""
        return out

    def _begun(self, stop: str) -> int:
        """How many last characters of what is held are the first ones of `stop`."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)


class Spelling:
    """One token as text and as bytes, for log probabilities."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        byte_level = "ByteLevel" in str(tokenizer.model.decoder)
        self._bytes = {c: b for b, c in enumerate(byte_characters())} if byte_level else {}

    def text(self, token: int) -> str:
        """A token that is no whole character is written as OpenAI writes it, bytes:\\xf0\\x9f, so that no two are alike."""
        text = self._tokenizer.model.decode([token], skip_special_tokens=False)
        return "bytes:" + "".join(f"\\x{b:02x}" for b in self._own(token)) if TORN in text else text

    def bytes(self, token: int) -> bytes:
        """A token's own bytes, which need not be a whole character."""
        return self._own(token) or self.text(token).encode()

    def _own(self, token: int) -> bytes:
        name = self._tokenizer.model.id_to_token(token) or ""
        return bytes(self._bytes[c] for c in name) if all(c in self._bytes for c in name) else b""
