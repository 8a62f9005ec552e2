"""Keys of the rewards, for every stage that asks for them. Knows nothing of torch."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from danlu.core.config import StrictConfig
from danlu.core.key_types import CommaList, FloatList, only_with, split_commas

Kind = Literal["lora", "full", "classifier", "api", "function", "rules"]
Kinds = Annotated[tuple[Kind, ...], BeforeValidator(split_commas)]
NEEDS = {
    "lora": "the folder of an adapter that stage rm wrote", "full": "the folder of a reward model",
    "classifier": "the folder of a sequence classifier", "api": "the URL of a reward server",
    "function": "a Python function as file.py:name", "rules": "a YAML file of rules",
}


class RewardKeys(StrictConfig):
    """Where an answer's reward comes from: one source, or several whose scores are added with weights."""

    reward_model: CommaList = Field(
        (), description="Where rewards come from: folder, URL, file.py:name, rules.yaml; comma separated for several.")
    reward_model_type: Kinds = Field(
        ("lora",), description="Kind of each source: lora, full, classifier, api, function, rules; comma separated.")
    reward_weights: FloatList = Field(
        (), description="Weight of each source in the sum, comma separated; unset: 1 each.")
    reward_model_adapters: CommaList = Field(
        (), description="Adapters of the full reward model: all but the last merged, the last with its value head.",
        json_schema_extra=only_with(reward_model_type="full"))
    reward_model_quantization_bit: Literal[4, 8] | None = Field(
        None, description="Bits that reward models and classifiers are held in; unset: 16 or 32.",
        json_schema_extra=only_with(reward_model_type=("full", "classifier")))
    reward_label: str | None = Field(
        None, description="Classifier's label whose score is the reward, by name or index; unset: positive, else last.",
        json_schema_extra=only_with(reward_model_type="classifier"))
    reward_score: Literal["probability", "logit"] | None = Field(
        None, description="What of that label counts; unset: its probability, or the logit when it is the only label.",
        json_schema_extra=only_with(reward_model_type="classifier"))
    reward_text: Literal["dialogue", "answer", "pair"] = Field(
        "dialogue", description="What the classifier reads: prompt and answer as one text, the answer, or a text pair.",
        json_schema_extra=only_with(reward_model_type="classifier"))
    reward_timeout: float = Field(
        60.0, gt=0, description="Seconds that a reward server has for a whole reply.",
        json_schema_extra=only_with(reward_model_type="api"))
    reward_retries: int = Field(
        5, ge=0, description="Further tries after 1, 2, 4, ... seconds when a reward server fails; then the run stops.",
        json_schema_extra=only_with(reward_model_type="api"))
    reward_batch_size: int | None = Field(
        None, ge=1, description="Answers in a request or forward pass; unset: 32 for a server, else the micro-batch.",
        json_schema_extra=only_with(reward_model_type=("api", "classifier", "full", "lora")))

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights in force, one for each source."""
        return self.reward_weights or (1.0,) * len(self.reward_model)

    @model_validator(mode="after")
    def _check(self) -> Self:
        sources, kinds, weights = len(self.reward_model), len(self.reward_model_type), len(self.reward_weights)
        if not sources:
            needed = ", ".join(NEEDS[kind] for kind in self.reward_model_type)
            raise ValueError(f"reward_model is missing: with reward_model_type "
                             f"{','.join(self.reward_model_type)} it names {needed or 'where rewards come from'}")
        if any("\n" in source and "," in source for source in self.reward_model):
            raise ValueError("reward_model holds rules written in place with a comma in them, which parts sources: "
                             "write these rules to a file and name it")
        if kinds != sources:
            raise ValueError(f"reward_model_type names {kinds} kinds and reward_model {sources} sources: "
                             "write as many of the one as of the other")
        if weights not in (0, sources):
            raise ValueError(f"reward_weights holds {weights} numbers and reward_model {sources} sources: "
                             "write one weight for each source, or leave reward_weights out")
        if weights and not any(self.reward_weights):
            raise ValueError("reward_weights are all 0, so that no answer would be better than another")
        if self.reward_model_adapters and self.reward_model_type.count("full") != 1:
            raise ValueError("reward_model_adapters belong to one source of reward_model_type full; here are "
                             f"{self.reward_model_type.count('full')}")
        return self
