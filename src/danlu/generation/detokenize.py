"""Token ids to text piece by piece, never splitting a character. Knows nothing of models."""

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what a decoder prints for the first bytes of a character whose last bytes are still to come


class TextStream:
    """Turns ids that arrive one by one into pieces of text that join to the text of all ids together.

    Only a window of recent tokens is decoded at each step, so the cost does not grow with the answer. Bytes that form
    no character at all may print differently from a decoder that sees them together.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids: list[int] = []
        self._context = self._start = 0  # the window is ids[context:]; ids[context:start] are already printed

    def push(self, token_id: int) -> str:
        """Return the text that became certain with this token; empty while a character is unfinished."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._context : self._start])
        now = self._decode(self._ids[self._context :])
        if now.endswith(UNFINISHED) or len(now) <= len(before) or not now.startswith(before):
            return ""
        self._context, self._start = self._start, len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """Return what is left when no more tokens come, an unfinished character included."""
        before = self._decode(self._ids[self._context : self._start])
        rest = self._decode(self._ids[self._context :])[len(before) :]
        self._context = self._start = len(self._ids)
        return rest

    def _decode(self, ids: list[int]) -> str:
        return decode(self._tokenizer, ids, skip_special_tokens=self._skip)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, skip_special_tokens: bool) -> str:
    """Return the text of `ids` exactly as the tokens spell it, without cosmetic clean-up of spaces."""
    return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))
