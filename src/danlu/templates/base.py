"""What every chat template can do, and the registry of the named ones. Knows nothing of models or data formats."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from danlu.core.errors import ConfigError, DataError
from danlu.core.records import Conversation, Message, Origin
from danlu.core.registry import Registry
from danlu.templates.controls import MARK, Marker
from danlu.templates.encoded import Encoded
from danlu.templates.rendered import Dialogue, Rendered, last_answer, without_marks
from danlu.templates.tokenize import Tokens, tokenize
from danlu.templates.tool_format import ToolFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How dialogues become training rows.

    train_on_prompt    every token carries loss, not only the answers
    mask_history       only the last answer carries loss
    default_system     system message of dialogues that have none; None leaves it to the template
    enable_thinking    for templates with reasoning: an answer without reasoning gets an empty block, as part of the
                       answer (True) or of the prompt (None, False); False also drops the reasoning of the data
    preserve_thinking  keep the reasoning of earlier answers, as the final answer keeps its own
    """

    train_on_prompt: bool = False
    mask_history: bool = False
    default_system: str | None = None
    enable_thinking: bool | None = True
    preserve_thinking: bool = False


class ChatTemplate(ABC):
    """Turns dialogues into token ids; a subclass says how they look as text."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the template in messages."""

    @abstractmethod
    def renderer(self, tokenizer: "PreTrainedTokenizerBase", options: EncodeOptions) -> Callable[[Dialogue], Rendered]:
        """Return the function that writes a dialogue and says where its answers are.

        A prompt's text ends with the generation prompt. What depends on the tokenizer alone is worked out once here.
        """

    @abstractmethod
    def jinja(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the chat template that is saved with the model: it renders the same text."""

    @abstractmethod
    def stop_strings(self, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
        """Return the control tokens that end an answer, beside the tokenizer's eos."""

    def literal_text(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return text that holds every string the template writes itself."""
        return self.jinja(tokenizer)

    def notices(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Say what the reader should know about this template with this tokenizer."""
        return None

    @property
    def tools(self) -> ToolFormat | None:
        """Format of tools that the template declares, or None."""
        return None

    def tools_of(self, tokenizer: "PreTrainedTokenizerBase") -> ToolFormat | None:
        """Return the format in which answers call tools, to read them back; None where it is not known."""
        return self.tools

    def with_tool_format(self, name: str) -> "ChatTemplate":
        """Return the same template with another format of tools."""
        raise ConfigError(f"{self.name} chat template writes tools in its own way", where="tool_format",
                          fix="take the key out, or choose a named `template`")

    def encode_batch(
        self, conversations: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase", options: EncodeOptions,
    ) -> list[Encoded]:
        """Encode dialogues for training.

        The ids of each answer's generation prompt are a prefix of the row's ids. Raises DataError, with the row's
        origin, for dialogues that the template cannot express.
        """
        dialogues = [
            Dialogue(with_default_system(talk.messages, options.default_system), talk.origin, talk.tools)
            for talk in conversations]
        rows = self._rendered(dialogues, tokenizer, options)
        tokens = tokenize(tokenizer, rows)
        return [_encoded(talk, row, tok, options) for talk, row, tok in zip(conversations, rows, tokens, strict=True)]

    def encode_prompt(
        self, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", *,
        tools: Sequence[dict[str, Any]] = (), enable_thinking: bool | None = None,
    ) -> list[int]:
        """Return the ids a model is asked to continue; they end with the generation prompt."""
        talk = Conversation(tuple(messages), Origin("prompt", 1), tuple(tools))
        return self.encode_prompts([talk], tokenizer, EncodeOptions(enable_thinking=enable_thinking))[0]

    def encode_prompts(
        self, conversations: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase", options: EncodeOptions,
    ) -> list[list[int]]:
        """Return the ids a model is asked to continue, for many dialogues that end before an answer."""
        dialogues = [
            Dialogue(with_default_system(talk.messages, options.default_system), talk.origin, talk.tools, True)
            for talk in conversations]
        return [tokens.ids for tokens in tokenize(tokenizer, self._rendered(dialogues, tokenizer, options))]

    def _rendered(
        self, dialogues: Sequence[Dialogue], tokenizer: "PreTrainedTokenizerBase", options: EncodeOptions,
    ) -> list[Rendered]:
        self.notices(tokenizer)
        marker = Marker(tokenizer, self.literal_text(tokenizer))
        render = self.renderer(tokenizer, options)
        rows = []
        for dialogue in dialogues:
            marked = replace(dialogue, messages=tuple(map(marker.message, dialogue.messages)),
                             tools=tuple(map(marker.value, dialogue.tools)))
            rows.append(without_marks(render(marked), MARK))
        return rows

    def stop_token_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the ids that end an answer: the tokenizer's eos and the template's own end-of-turn tokens."""
        ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        for text in self.stop_strings(tokenizer):
            token = single_token(tokenizer, text)
            if token is not None and token not in ids:
                ids.append(token)
        return ids

    def prepare_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Set the chat template that is saved with the model, and a pad token where there is none.

        The pad token only fills batches of other tools; danlu finds no padding by it, so eos may serve.
        """
        tokenizer.chat_template = self.jinja(tokenizer)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = _spare_token(tokenizer) or tokenizer.eos_token


def with_default_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """Put `system` in front of messages that begin without a system message."""
    if system is None or (messages and messages[0].role == "system"):
        return messages
    return (Message("system", system), *messages)


def single_token(tokenizer: "PreTrainedTokenizerBase", text: str) -> int | None:
    """Return the id of `text` when this tokenizer has it as one token, else None; asked once for each vocabulary."""
    size, known = _SINGLE.get(tokenizer, (0, {}))
    if size != len(tokenizer):
        size, known = _SINGLE[tokenizer] = len(tokenizer), {}
    if text not in known:
        known[text] = _look_up(tokenizer, text)
    return known[text]


def _look_up(tokenizer: "PreTrainedTokenizerBase", text: str) -> int | None:
    index = tokenizer.convert_tokens_to_ids(text)
    if not isinstance(index, int) or (index == tokenizer.unk_token_id and text != tokenizer.unk_token):
        return None
    return index if tokenizer(text, add_special_tokens=False)["input_ids"] == [index] else None


def _spare_token(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return a token of the vocabulary that no text produces, fit to be the pad token."""
    usual = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|endoftext|>", "<unk>")
    for text in usual:
        if text != tokenizer.eos_token and single_token(tokenizer, text) is not None:
            return text
    return None


def _encoded(talk: Conversation, row: Rendered, tokens: Tokens, options: EncodeOptions) -> Encoded:
    if not row.turns:
        raise DataError("the dialogue has no assistant turn, so nothing in it can be trained",
                        where=str(talk.origin), fix="add the answer, or remove the row")
    length = len(tokens.ids)
    trained = np.full(length, options.train_on_prompt, np.bool_)
    weights = np.ones(length, np.float32)
    shift = len(with_default_system(talk.messages, options.default_system)) - len(talk.messages)
    final = last_answer(talk.messages)
    for turn, (_, answer, stop, _) in zip(row.turns, tokens.turns, strict=True):
        weight = talk.messages[turn.message - shift].weight
        if weight is None:
            weight = 0.0 if options.mask_history and turn.message - shift != final else 1.0
            if weight == 0.0 and options.train_on_prompt:
                continue
        trained[answer:stop] = weight != 0
        weights[answer:stop] = weight if weight != 0 else 1.0
    return Encoded(
        np.array(tokens.ids, np.int32), trained, weights if (weights != 1).any() else None,
        tuple((start, answer, end) for start, answer, _, end in tokens.turns), talk.origin)


# Tokenizers, their size when asked, and the answers; a token that is added makes the size another one.
_SINGLE: WeakKeyDictionary["PreTrainedTokenizerBase", tuple[int, dict[str, int | None]]] = WeakKeyDictionary()
TEMPLATES: Registry[ChatTemplate] = Registry("template", "danlu.templates")
