"""Generation by vLLM, an engine with its own copy of the weights. The one file that imports vllm, when it is used.

The copy is read from the base's folder. An adapter goes along with each request: the one that is named, or, where a
policy is being trained, what it has learnt so far, written out anew before each round of answers.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from peft import PeftConfig, PeftModel
from transformers import GenerationConfig as ModelGenerationConfig
from transformers import PreTrainedTokenizerBase

from danlu.core.errors import CapabilityError, ConfigError
from danlu.generation.base import BACKENDS, Backend, Completion, Source
from danlu.generation.config import GenerationConfig
from danlu.generation.detokenize import TextStream
from danlu.generation.transformers_backend import (
    check_sampling,
    completion,
    context_length,
    declared_stop_ids,
    new_tokens,
)
from danlu.generation.vllm_arguments import (
    OTHERWISE,
    check_adapter,
    check_numbers,
    check_settings,
    check_source,
    drawn_tokens,
    engine_arguments,
    sampling_arguments,
    seed_of,
)
from danlu.models.architecture import load_config
from danlu.models.base_identity import check_same_base
from danlu.models.merged import check_merged, merged_below
from danlu.models.pissa import is_pissa
from danlu.models.save import write_adapter
from danlu.models.source import check_model_source
from danlu.models.tokenizer import adapter_paths


class VLLMGenerator:
    """Continues prompts with a vllm.LLM. `policy` is the adapter that trains in this process; `adapter` one on disk."""

    def __init__(
        self, engine: Any, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], *,
        adapter: str | None = None, policy: PeftModel | None = None,
    ) -> None:
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self._engine, self._policy = engine, policy
        self.adapter_request = None if adapter is None else _lora_request("adapter", 1, adapter)
        self._round, self._scratch = 0, tempfile.TemporaryDirectory(prefix="danlu-vllm-")

    @property
    def context(self) -> int | None:
        """Return the tokens the engine has room for: vllm_maxlen, or the model's positions where these are fewer."""
        return int(self._engine.model_config.max_model_len)

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, *, seed: int = 0
    ) -> list[Completion]:
        """Answer every prompt, in the order given; see `Generator.generate`."""
        check_sampling(settings, seed, with_logps=False)
        return self._answer(prompts, settings, [(seed, row) for row in range(len(prompts))], with_logps=False)

    def sample(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, *, keys: Sequence[Sequence[int]],
        samples: int = 1,
    ) -> list[list[Completion]]:
        """Return `samples` answers of each prompt with the log-probability of every token; see `Generator.sample`."""
        check_sampling(settings, 0, with_logps=True)
        rows = [prompt for prompt in prompts for _ in range(samples)]
        answers = self._answer(rows, settings, [(*key, j) for key in keys for j in range(samples)], with_logps=True)
        return [answers[first : first + samples] for first in range(0, len(rows), samples)]

    def stream(self, prompt: Sequence[int], settings: GenerationConfig, *, seed: int = 0) -> Iterator[str]:
        """Yield the answer in pieces while it is computed. Closing the iterator stops the computation."""
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        check_sampling(settings, seed, with_logps=False)
        params = self._params(prompt, settings, (seed, 0), with_logps=False)
        params.output_kind = RequestOutputKind.DELTA
        engine, name = self._engine.llm_engine, f"stream-{uuid4().hex}"
        text = TextStream(self.tokenizer, skip_special_tokens=settings.skip_special_tokens)
        hidden = self.stop_ids if settings.skip_special_tokens else frozenset()
        engine.add_request(name, tokens_input(list(prompt)), params, lora_request=self.adapter_request)
        try:
            while engine.has_unfinished_requests():
                tokens = [token for answer in engine.step() for token in answer.outputs[0].token_ids]
                yield from filter(None, [text.push(token) for token in tokens if token not in hidden])
            yield from filter(None, [text.flush()])
        finally:
            engine.abort_request([name])

    def refresh(self) -> None:
        """Hand the adapter as it stands now to the engine, under a name it has not seen: nothing cached is reused."""
        if self._policy is None:
            return
        before, self._round = self._folder(), self._round + 1
        self._folder().mkdir()
        write_adapter(self._policy, self._folder(), self._policy.peft_config["default"].base_model_name_or_path)
        self.adapter_request = _lora_request(f"policy-{self._round}", self._round, str(self._folder()))
        shutil.rmtree(before, ignore_errors=True)

    def _folder(self) -> Path:
        return Path(self._scratch.name) / f"round-{self._round}"

    def _answer(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, streams: Sequence[Sequence[int]], *,
        with_logps: bool,
    ) -> list[Completion]:
        """Answer prompt i from the random stream streams[i]; the engine batches as its memory allows."""
        if not prompts:
            return []
        params = [self._params(prompt, settings, stream, with_logps=with_logps)
                  for prompt, stream in zip(prompts, streams, strict=True)]
        found = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False,
            lora_request=self.adapter_request)
        return [self._completion(one, settings) for one in found]

    def _completion(self, request: Any, settings: GenerationConfig) -> Completion:
        ids, logps = drawn_tokens(request.outputs[0])
        check_numbers(logps or [])
        return completion(self.tokenizer, ids, self.stop_ids, settings, logps)

    def _params(
        self, prompt: Sequence[int], settings: GenerationConfig, stream: Sequence[int], *, with_logps: bool,
    ) -> Any:
        from vllm import SamplingParams

        check_settings(settings)
        return SamplingParams(**sampling_arguments(
            settings, limit=new_tokens(len(prompt), settings, self.context), stop_ids=self.stop_ids,
            seed=seed_of(stream), with_logps=with_logps))


def build(source: Source, model: Any) -> VLLMGenerator:
    """Start the engine for what `source` names; `model` is a policy that trains in this process, or None.

    Raises CapabilityError for a missing package, and for weights and adapters that vLLM does not serve.
    """
    check_settings(source.settings)
    check_source(source)
    name = check_model_source(source.model.model_name_or_path, cache_dir=source.model.cache_dir)
    policy = None if model is None else _policy(model, source)
    adapter = _adapter(source, name) if model is None else None
    config = load_config(name, source.model)
    arguments = engine_arguments(
        source, name, context=context_length(config), has_adapter=adapter is not None or policy is not None)
    stops = declared_stop_ids(_published_settings(source, name, config), source.tokenizer, source.stop_ids)
    return VLLMGenerator(_start(arguments), source.tokenizer, stops, adapter=adapter, policy=policy)


BACKENDS.add(Backend(build, needs_model=False), "vllm")


def _start(arguments: dict[str, Any]) -> Any:
    if find_spec("vllm") is None:
        raise CapabilityError("infer_backend: vllm needs the package vllm, which is not installed",
                              where="infer_backend", fix='pip install "danlu[vllm]"; or ' + OTHERWISE)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # nothing about a run leaves the machine unasked
    from vllm import LLM

    try:
        return LLM(**arguments)
    except TypeError as error:
        raise ConfigError(f"vLLM does not take these arguments: {error}", where="vllm_config",
                          fix="see the arguments of vllm.LLM") from error
    except (ValueError, RuntimeError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CapabilityError(
            f"vLLM does not start: {said[:300]}", where="infer_backend",
            fix="vllm_gpu_util, vllm_maxlen and vllm_enforce_eager bound its memory; or " + OTHERWISE) from error


def _policy(model: Any, source: Source) -> PeftModel:
    """Return the policy; refuse what cannot be handed over as an adapter on the base as it is on disk."""
    if not isinstance(model, PeftModel) or merged_below(model):
        raise CapabilityError("infer_backend: vllm follows a policy through its LoRA adapter, on a base as it is on "
                              "disk; here more than that is trained or merged", where="infer_backend",
                              fix="set infer_backend: danlu, or finetuning_type: lora with one adapter")
    if torch.distributed.is_available() and torch.distributed.is_initialized() and (
            torch.distributed.get_world_size() > 1):
        raise CapabilityError("infer_backend: vllm samples in runs of one process", where="infer_backend",
                              fix="set infer_backend: danlu")
    settings = model.peft_config["default"].to_dict()
    if is_pissa(model):  # written as a plain LoRA of twice its rank
        settings |= {"r": 2 * settings["r"], "init_lora_weights": True}
    check_adapter(settings, source.settings.vllm_max_lora_rank, "infer_backend")
    return model


def _adapter(source: Source, base: str) -> str | None:
    """Return the folder or hub id of the one adapter that is named; None for a base alone."""
    paths = adapter_paths(source.model)
    if len(paths) > 1:
        raise CapabilityError(f"infer_backend: vllm serves one adapter, {len(paths)} are named",
                              where="adapter_name_or_path", fix=f"merge them with `danlu export`; or {OTHERWISE}")
    if not paths:
        return None
    check_same_base(paths[0], base)
    check_merged(paths[0], ())
    check_adapter(PeftConfig.from_pretrained(paths[0]).to_dict(), source.settings.vllm_max_lora_rank, paths[0])
    return paths[0]


def _published_settings(source: Source, name: str, config: Any) -> ModelGenerationConfig:
    """Return what the model's folder says about generation; of it, only the stop ids are used."""
    model = source.model
    try:
        return ModelGenerationConfig.from_pretrained(
            name, cache_dir=model.cache_dir, revision=model.model_revision, token=model.hf_hub_token)
    except OSError:  # no generation_config.json: older models say it in config.json
        return ModelGenerationConfig.from_model_config(config)


def _lora_request(name: str, number: int, path: str) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, number, path)
