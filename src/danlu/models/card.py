"""The README.md beside saved weights: what was trained, from what, how, and how to load it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

LIBRARIES = ("danlu", "torch", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a model card tells.

    base      name of the base model
    stage     sft, pt, ... or "" when unknown
    method    lora, freeze, full
    datasets  names of the data sets
    settings  hyper-parameters by key
    metrics   results by name
    title     headline; empty: the name of the folder
    """

    base: str
    stage: str = ""
    method: str = "full"
    datasets: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    title: str = ""


def write_model_card(folder: Path, facts: CardFacts) -> None:
    """Write README.md with the front matter that model hubs read."""
    adapter = facts.method == "lora"
    base = Path(facts.base).name if Path(facts.base).exists() else facts.base
    front: dict[str, Any] = {
        "base_model": base, "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation", "tags": [tag for tag in ("danlu", facts.stage, facts.method) if tag]}
    lines = ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(), "---", "",
             f"# {facts.title or folder.name}", "", _sentence(facts, base), ""]
    lines += _table("Settings", facts.settings) + _table("Results", facts.metrics)
    lines += ["## Loading", "", "```python", *_loading(adapter), "```", "", "## Made with", ""]
    lines += [f"- {name} {version(name)}" for name in LIBRARIES]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sentence(facts: CardFacts, base: str) -> str:
    kind = "A LoRA adapter for" if facts.method == "lora" else "A model trained from"
    stage = f" by danlu, stage `{facts.stage}`" if facts.stage else " by danlu"
    data = f", on {', '.join(f'`{name}`' for name in facts.datasets)}" if facts.datasets else ""
    return f"{kind} `{base}`{stage} (`{facts.method}`){data}."


def _table(title: str, rows: Mapping[str, Any]) -> list[str]:
    if not rows:
        return []
    cells = [f"| {key} | {value:.6g} |" if isinstance(value, float) else f"| {key} | {value} |"
             for key, value in rows.items()]
    return [f"## {title}", "", "| name | value |", "|---|---|", *cells, ""]


def _loading(adapter: bool) -> list[str]:
    if adapter:
        return ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer", "",
                'model = AutoPeftModelForCausalLM.from_pretrained("path/of/this/folder")',
                'tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")']
    return ["from transformers import AutoModelForCausalLM, AutoTokenizer", "",
            'model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")',
            'tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")']
