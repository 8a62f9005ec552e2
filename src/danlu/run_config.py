"""One run's configuration: the flat keys, handed to their owners as frozen Configs. Imports no torch."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from danlu.core import schema
from danlu.core.config import StrictConfig
from danlu.core.errors import ConfigError
from danlu.core.resolve import Resolved, resolve
from danlu.data.config import DataConfig
from danlu.engine.config import EngineConfig
from danlu.evaluation.config import EvaluationConfig
from danlu.export.config import ExportConfig
from danlu.generation.config import GenerationConfig
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig

C = TypeVar("C", bound=StrictConfig)


class RunKeys(StrictConfig):
    """What the run does, from training to prediction."""

    stage: str = Field("sft", description="Training stage.")
    do_train: bool = Field(False, description="Train; `danlu train` does so when no do_ key is given.")
    do_eval: bool = Field(False, description="Evaluate at the end.")
    do_predict: bool = Field(False, description="Write answers for the evaluation set.")
    predict_with_generate: bool = Field(False, description="Evaluate by generating answers and comparing texts.")


OWNERS: dict[str, type[StrictConfig]] = {
    "run": RunKeys, "model": ModelConfig, "quantization": QuantizationConfig, "adapter": AdapterConfig,
    "data": DataConfig, "engine": EngineConfig, "generation": GenerationConfig, "evaluation": EvaluationConfig,
    "export": ExportConfig,
}
"""Which Config owns the keys of each part; a stage's own Config is owned by `stage:<name>`."""


SECRETS = frozenset({"hf_hub_token", "swanlab_api_key"})
"""Keys whose values are never shown nor stored."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything a run needs to know, checked."""

    verb: str
    stage: str
    do_train: bool
    do_eval: bool
    do_predict: bool
    predict_with_generate: bool
    model: ModelConfig
    quantization: QuantizationConfig
    adapter: AdapterConfig
    data: DataConfig
    engine: EngineConfig
    generation: GenerationConfig
    evaluation: EvaluationConfig
    export: ExportConfig
    stage_config_values: dict[str, Any]
    origins: dict[str, str]
    notices: tuple[str, ...]

    def flat(self) -> dict[str, Any]:
        """Return every key of the run with its value, in the order of the schema; lists as comma text."""
        values: dict[str, Any] = {name: getattr(self, name) for name in RunKeys.model_fields}
        for owner in list(OWNERS)[1:]:
            values |= getattr(self, owner).model_dump()
        values |= self.stage_config_values
        return {key: ",".join(map(str, value)) if isinstance(value, tuple | list) else value
                for key, value in values.items()}

    def given(self) -> dict[str, Any]:
        """Return the keys that were written, under their names of today: enough to repeat the run. No secrets."""
        flat = self.flat()
        return {key: flat[key] for key, origin in self.origins.items() if origin != "default" and key not in SECRETS}

    def where(self, key: str) -> str:
        """Return `file:line` or `command line` of a key that was given, else the key itself, for messages."""
        return f"{self.origins[key]}: {key}" if self.origins.get(key, "default") != "default" else key


def load_run_config(path: Path | str | None, overrides: Sequence[str], verb: str) -> RunConfig:
    """Return the checked configuration of a file and a command line, which wins.

    Raises ConfigError with every mistake that can be seen without torch.
    """
    return build_run_config(resolve(path, overrides, verb))


def build_run_config(resolved: Resolved) -> RunConfig:
    """Return the Configs of resolved keys. Raises ConfigError for values that contradict each other."""
    mistakes: list[str] = []
    values, notices = dict(resolved.values), list(resolved.notices)
    training = resolved.verb in ("train", "plan")
    if training:
        notices += _settle_purpose(values)
    built = {owner: _build(owner, config, values, resolved, mistakes) for owner, config in OWNERS.items()}
    _stop(mistakes)
    run = built.pop("run")
    assert isinstance(run, RunKeys)
    origins = {key: resolved.origins.get(key, "default") for key in _all_keys()}
    owned = {key: stages for key, spec in schema.keys().items() if (stages := schema.stages_of(spec))}
    origins = {key: origin for key, origin in origins.items() if run.stage in owned.get(key, (run.stage,))}
    stage_values = {key: values.get(key, schema.keys()[key]["default"]) for key in origins if key in owned}
    config = RunConfig(verb=resolved.verb, **run.model_dump(), **built,  # type: ignore[arg-type]
                       stage_config_values=stage_values, origins=origins, notices=tuple(notices))
    if training:
        _stop(list(_contradictions(config)))
    return config


def stage_settings(config: RunConfig, kind: type[C]) -> C:
    """Return the Config of the run's stage. Raises ConfigError for values that contradict each other."""
    try:
        return kind.model_validate(config.stage_config_values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            text = problem["msg"].removeprefix("Value error, ")
            keys = [str(part) for part in problem["loc"]][:1] or _named(text, config.stage_config_values)
            lines.append(ConfigError(text, where=", ".join(map(config.where, keys))).render())
        raise ConfigError("\n".join(lines)) from None


def _stop(mistakes: Iterable[str]) -> None:
    listed = list(mistakes)
    if listed:
        raise ConfigError("\n".join(listed))


def _settle_purpose(values: dict[str, Any]) -> list[str]:
    """Fill in what older configurations leave unsaid: that they train, or which set they evaluate."""
    told = []
    if not any(values.get(key) for key in ("do_train", "do_eval", "do_predict")) and "do_train" not in values:
        values["do_train"] = True
        told.append("none of do_train, do_eval, do_predict is true: training, as do_train: true")
    evaluates = values.get("do_eval") or values.get("do_predict")
    if evaluates and not values.get("do_train") and not any(
            values.get(key) for key in ("eval_dataset", "eval_file", "val_size")):
        for source, target in (("dataset", "eval_dataset"), ("train_file", "eval_file")):
            if values.get(source):
                values[target] = values[source]
                told.append(f"no {target} is given: evaluating {source} itself")
    return told


def _all_keys() -> list[str]:
    return [key for key, spec in schema.keys().items() if spec["x-status"] == "active" and "x-alias-of" not in spec]


def _build(owner: str, config: type[C], values: dict[str, Any], resolved: Resolved, mistakes: list[str]) -> C | None:
    mine = {key: value for key, value in values.items() if key in config.model_fields}
    try:
        return config.model_validate(mine)
    except ValidationError as error:
        for problem in error.errors():
            keys = [str(part) for part in problem["loc"]][:1]
            text = problem["msg"].removeprefix("Value error, ")
            what = f'"{keys[0]}": {text}' if keys else text
            mistakes.append(ConfigError(what, where=_places(keys or _named(text, mine), resolved)).render())
        return None


def _named(text: str, given: dict[str, Any]) -> list[str]:
    """Return the given keys that a message names."""
    return [word for word in dict.fromkeys(re.findall(r"\w+", text)) if word in given]


def _places(keys: Iterable[str], resolved: Resolved) -> str:
    return ", ".join(dict.fromkeys(resolved.origins[key] for key in keys if key in resolved.origins))


def _contradictions(config: RunConfig) -> Iterable[str]:
    """Yield the mistakes that only the whole configuration shows."""
    data, engine = config.data, config.engine
    if not config.model.model_name_or_path:
        yield _mistake(config, "model_name_or_path", "is missing", "give the folder of the base model")
    if not engine.output_dir:
        yield _mistake(config, "output_dir", "is missing", "give a folder for the results")
    if not (config.do_train or config.do_eval or config.do_predict):
        yield _mistake(config, "do_train", "is false, and neither do_eval nor do_predict is true: nothing to do",
                       "remove do_train, or set one of them to true")
    if config.do_train and not (data.dataset or data.train_file or data.tokenized_path):
        yield _mistake(config, "dataset", "is missing", "name a set of dataset_info.json, or give train_file a path")
    has_evaluation = bool(data.eval_dataset or data.eval_file or data.val_size or data.tokenized_path)
    for key in ("do_eval", "do_predict"):
        if getattr(config, key) and not has_evaluation:
            yield _mistake(config, key, "has no data to evaluate", "give eval_dataset, or val_size above 0")
    if config.do_train and engine.eval_strategy != "no" and not has_evaluation:
        yield _mistake(config, "eval_strategy", f"is {engine.eval_strategy}, but there is no data to evaluate",
                       "give eval_dataset, or val_size above 0")
    if data.streaming and engine.group_by_length:
        yield _mistake(config, "group_by_length", "does not go with streaming: the lengths of rows to come are unknown",
                       "leave group_by_length out, or set packing: true")
    if config.model.upcast_layernorm and config.adapter.pure_bf16:
        yield _mistake(config, "upcast_layernorm", "does not go with pure_bf16: layers in bfloat16 cannot take float32",
                       "set bf16: true instead of pure_bf16, or leave upcast_layernorm out")
    method = config.adapter.finetuning_type
    if config.quantization.quantization_bit and config.do_train and method != "lora":
        yield _mistake(config, "quantization_bit", f"does not go with finetuning_type {method}: weights in few bits "
                       "cannot be trained", "set finetuning_type: lora, or remove quantization_bit")
    if config.quantization.quantization_bit and config.do_train and config.adapter.pissa_init:
        yield _mistake(config, "pissa_init", "takes singular vectors of the base weights, and quantization_bit "
                       "quantises these", "leave out pissa_init or quantization_bit")


def _mistake(config: RunConfig, key: str, what: str, fix: str) -> str:
    origin = config.origins.get(key, "default")
    return ConfigError(f'"{key}" {what}', where="" if origin == "default" else origin, fix=fix).render()
