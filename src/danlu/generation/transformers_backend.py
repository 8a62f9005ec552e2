"""Generation with stock transformers models in this process: batches for evaluation, pieces of text for chat."""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch
from transformers import GenerationConfig as ModelGenerationConfig
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from danlu.core.errors import CapabilityError, UserError
from danlu.generation.base import BACKENDS, Backend, Completion, Source
from danlu.generation.config import GenerationConfig
from danlu.generation.detokenize import TextStream, decode
from danlu.generation.sampling import RowSampler
from danlu.models.proof import evaluating

STOCK_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")

SAMPLING_KEYS = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty",
    "num_beams", "max_length", "max_new_tokens", "min_length", "min_new_tokens")


class TransformersGenerator:
    """Continues prompts with `model.generate`. `stop_ids` end an answer, besides those the model itself names."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int] = (), *,
        batch_size: int = 16, with_logps: bool = False,
    ) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.tokenizer = tokenizer
        self.stop_ids = all_stop_ids(self.model, tokenizer, stop_ids)
        self._batch_size, self._with_logps = batch_size, with_logps

    @property
    def context(self) -> int | None:
        """Return the number of positions the model was built for; None when its positions are unbounded."""
        return context_length(self.model.config)

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, *, seed: int = 0
    ) -> list[Completion]:
        """Answer every prompt; prompts of similar length share a batch, answers come back in the order given."""
        check_sampling(settings, seed, with_logps=self._with_logps)
        seeds = [(seed, row) for row in range(len(prompts))]
        return self._answer(prompts, settings, seeds, with_logps=self._with_logps)

    def sample(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, *, keys: Sequence[Sequence[int]],
        samples: int = 1,
    ) -> list[list[Completion]]:
        """Return `samples` answers of each prompt with the log-probability of every token; see `Generator.sample`."""
        check_sampling(settings, 0, with_logps=True)
        rows = [prompt for prompt in prompts for _ in range(samples)]
        seeds = [(*key, number) for key in keys for number in range(samples)]
        answers = self._answer(rows, settings, seeds, with_logps=True)
        return [answers[first : first + samples] for first in range(0, len(rows), samples)]

    def _answer(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, seeds: Sequence[Sequence[int]], *,
        with_logps: bool,
    ) -> list[Completion]:
        """Answer prompt i from the random stream of seeds[i], in batches of prompts of similar length."""
        limits = [new_tokens(len(prompt), settings, self.context) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        answers: dict[int, Completion] = {}
        with generating(self.model):
            for start in range(0, len(order), self._batch_size):
                rows = order[start : start + self._batch_size]
                batch = self._generate_batch(
                    [prompts[row] for row in rows], [limits[row] for row in rows], settings,
                    [seeds[row] for row in rows], with_logps)
                answers.update(zip(rows, batch, strict=True))
        return [answers[row] for row in range(len(prompts))]

    def stream(self, prompt: Sequence[int], settings: GenerationConfig, *, seed: int = 0) -> Iterator[str]:
        """Yield the answer in pieces while it is computed. Closing the iterator stops the computation."""
        if settings.num_beams > 1:
            yield self.generate([prompt], settings, seed=seed)[0].text
            return
        check_sampling(settings, seed, with_logps=self._with_logps)
        limit = new_tokens(len(prompt), settings, self.context)
        feed, text = _TokenFeed(), TextStream(self.tokenizer, skip_special_tokens=settings.skip_special_tokens)
        worker = threading.Thread(target=self._fill, args=(feed, prompt, limit, settings, seed), daemon=True)
        with generating(self.model):
            worker.start()
            try:
                hidden = self.stop_ids if settings.skip_special_tokens else ()
                pushed = (text.push(token) for token in feed.tokens() if token not in hidden)
                yield from (piece for piece in pushed if piece)
                yield from filter(None, [text.flush()])
            finally:
                feed.cancelled.set()
                worker.join()

    def refresh(self) -> None:
        """Do nothing: the model that trains is the model that answers."""

    def _fill(
        self, feed: "_TokenFeed", prompt: Sequence[int], limit: int, settings: GenerationConfig, seed: int
    ) -> None:
        """Run in the worker thread; whatever goes wrong is handed to the reading thread, which raises it."""
        try:
            self._run([prompt], limit, settings, [(seed, 0)], streamer=feed, stopping=[_Cancelled(feed.cancelled)])
        except BaseException as error:
            feed.queue.put(error)
        finally:
            feed.queue.put(None)

    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], settings: GenerationConfig,
        seeds: Sequence[Sequence[int]], with_logps: bool,
    ) -> list[Completion]:
        output_BT, logps = self._run(prompts, max(limits), settings, seeds, with_logps=with_logps)
        width = max(map(len, prompts))
        new = output_BT[:, width:].tolist()
        return [
            completion(
                self.tokenizer, ids[:limit], self.stop_ids, settings, None if logps is None else logps[row])
            for row, (ids, limit) in enumerate(zip(new, limits, strict=True))]

    def _run(
        self, prompts: Sequence[Sequence[int]], limit: int, settings: GenerationConfig,
        seeds: Sequence[Sequence[int]], *, with_logps: bool = False, streamer: BaseStreamer | None = None,
        stopping: Sequence[StoppingCriteria] = (),
    ) -> tuple[torch.Tensor, list[list[float]] | None]:
        width, device = max(map(len, prompts)), self.model.get_input_embeddings().weight.device
        pad = self._pad_id()
        input_ids_BT = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        processors, sampler = LogitsProcessorList(), None
        if settings.num_beams == 1:
            pads = [width - len(p) for p in prompts]
            sampler = RowSampler(settings, pads, seeds, limit, with_logps=with_logps)
            processors.append(sampler)
        with torch.random.fork_rng():
            torch.manual_seed(seeds[0][0])  # for beam search alone: RowSampler draws from streams of its own
            output_BT = self.model.generate(
                input_ids_BT, attention_mask=mask_BT, generation_config=self._model_settings(settings, limit, pad),
                logits_processor=processors, stopping_criteria=StoppingCriteriaList(stopping), streamer=streamer)
        logps = None if sampler is None or sampler.logps is None else torch.stack(sampler.logps, 1).tolist()
        return output_BT, logps

    def _model_settings(self, settings: GenerationConfig, limit: int, pad: int) -> ModelGenerationConfig:
        """Return what transformers is told. Without beams the choice is RowSampler's, so all warping is off there."""
        beams = settings.num_beams > 1
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
        return ModelGenerationConfig(
            max_new_tokens=limit, num_beams=settings.num_beams, do_sample=beams and settings.do_sample,
            repetition_penalty=settings.repetition_penalty if beams else 1.0,
            eos_token_id=sorted(self.stop_ids) or None, pad_token_id=pad, use_cache=settings.use_kv_cache,
            **({"length_penalty": settings.length_penalty} if beams else {}),
            **(sampling if beams and settings.do_sample else {}))

    def _pad_id(self) -> int:
        """Return any valid id for masked positions; which one is never seen by the model."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else min(self.stop_ids, default=0)


def _build(source: Source, model: Any) -> TransformersGenerator:
    return TransformersGenerator(model, source.tokenizer, source.stop_ids, batch_size=source.batch_size)


BACKENDS.add(Backend(_build), "huggingface", "hf", "transformers")


class _TokenFeed(BaseStreamer):  # type: ignore[misc]
    """Carries token ids from the computing thread to the reading one; the first put is the prompt and is skipped."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self.cancelled = threading.Event()
        self._saw_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Receive the ids of one step."""
        if not self._saw_prompt:
            self._saw_prompt = True
            return
        for token in value.flatten().tolist():
            self.queue.put(token)

    def end(self) -> None:
        """Accept the end of the answer; `_fill` closes the queue, after errors too."""

    def tokens(self) -> Iterator[int]:
        """Yield ids until the answer ends; raise what the computing thread raised."""
        while (item := self.queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


class _Cancelled(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Put a model in the state generation needs and back.

    No dropout, an attention that knows padding and a cache, and none of the sampling settings that its publisher
    recommends: those of the run count.
    """
    attention, recommended = model.config._attn_implementation, model.generation_config
    model.generation_config = _without_sampling(recommended)
    if attention not in STOCK_ATTENTION:
        model.set_attn_implementation("sdpa")
    try:
        with evaluating(model):
            yield
    finally:
        if attention not in STOCK_ATTENTION:
            model.set_attn_implementation(attention)
        model.generation_config = recommended


def _without_sampling(recommended: ModelGenerationConfig) -> ModelGenerationConfig:
    settings = copy.deepcopy(recommended)
    for name in SAMPLING_KEYS:
        setattr(settings, name, None)
    return settings


def context_length(config: Any) -> int | None:
    """Return the positions a model's configuration declares; None for models without a bound, BLOOM for instance."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def all_stop_ids(model: Any, tokenizer: PreTrainedTokenizerBase, more: Sequence[int]) -> frozenset[int]:
    """Return the ids that end an answer: the template's, the tokenizer's and those of the model's own settings."""
    return declared_stop_ids(model.generation_config, tokenizer, more)


def declared_stop_ids(
    settings: ModelGenerationConfig | None, tokenizer: PreTrainedTokenizerBase, more: Sequence[int],
) -> frozenset[int]:
    """Return the ids of `all_stop_ids`, the model's own `settings` being given without the model."""
    declared = getattr(settings, "eos_token_id", None)
    own = declared if isinstance(declared, list) else [declared]
    return frozenset(int(i) for i in (*more, *own, tokenizer.eos_token_id) if i is not None)


def completion(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: frozenset[int], settings: GenerationConfig,
    logps: Sequence[float] | None,
) -> Completion:
    """Return the answer that `ids` hold up to their first stop token; `logps` belong to the same tokens."""
    end = next((n for n, token in enumerate(ids) if token in stop_ids), None)
    kept = list(ids) if end is None else list(ids[: end + 1])
    spoken = kept[:-1] if end is not None and settings.skip_special_tokens else kept
    return Completion(
        ids=tuple(kept), text=decode(tokenizer, spoken, skip_special_tokens=settings.skip_special_tokens),
        finish_reason="length" if end is None else "stop",
        logps=None if logps is None else tuple(logps[: len(kept)]))


def new_tokens(prompt_tokens: int, settings: GenerationConfig, context: int | None) -> int:
    """Return how many tokens the answer may have: max_new_tokens if set, else what max_length leaves.

    Raises UserError when there is no prompt, or none of the room is left.
    """
    if prompt_tokens == 0:
        raise UserError("the prompt is empty", fix="say something, or choose a template that opens with a token")
    room = settings.max_new_tokens if settings.max_new_tokens > 0 else settings.max_length - prompt_tokens
    if room <= 0:
        raise UserError(
            f"the prompt has {prompt_tokens} tokens and max_length is {settings.max_length}: no room to answer",
            where="max_length", fix="raise max_length, or set max_new_tokens, which counts the answer alone")
    if context is None:
        return room
    if prompt_tokens >= context:
        raise UserError(
            f"the prompt has {prompt_tokens} tokens; the model's context is {context}",
            fix="shorten the prompt, clear the history, or use a model with a longer context")
    return min(room, context - prompt_tokens)


def check_sampling(settings: GenerationConfig, seed: int, *, with_logps: bool) -> None:
    """Refuse what no backend can draw: log-probabilities under beam search, a negative seed."""
    if with_logps and settings.num_beams > 1:
        raise CapabilityError("log-probabilities of sampled tokens need num_beams 1", where="num_beams")
    if seed < 0:
        raise UserError(f"seed is {seed}; it must not be negative", where="seed")
