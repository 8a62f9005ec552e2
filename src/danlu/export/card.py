"""The README.md of an exported model: what it is made of and how to ask it. Knows nothing of weights."""

from importlib.metadata import version
from pathlib import Path


def write_card(folder: Path, *, base: str, adapters: tuple[str, ...], dtype: str, has_template: bool) -> None:
    """Write a model card with the front matter that model hubs read."""
    name = Path(base).name or base
    ask = (
        'prompt = tokenizer.apply_chat_template(\n    [{"role": "user", "content": "你好"}], '
        'add_generation_prompt=True, return_tensors="pt", return_dict=True)'
        if has_template else 'prompt = tokenizer("Once upon a time", return_tensors="pt")')
    (folder / "README.md").write_text(f"""---
library_name: transformers
pipeline_tag: text-generation
base_model: {name}
tags: [danlu]
---

# {folder.name.strip('.').removesuffix('.partial')}

{_made(name, adapters, dtype)}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")
{ask}
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=64)[0]))
```
""", encoding="utf-8")


def write_classifier_card(
    folder: Path, *, base: str, adapters: tuple[str, ...], dtype: str, has_template: bool, ends: tuple[int, ...],
    has_adapter: bool,
) -> None:
    """Write the card of a reward model: how to score an answer, and at which token."""
    name = Path(base).name or base
    encode = ('ids = tokenizer.apply_chat_template(\n    [{"role": "user", "content": "1 + 1 = ?"}, '
              '{"role": "assistant", "content": "2"}],\n    return_tensors="pt", return_dict=True)["input_ids"]'
              if has_template else 'ids = tokenizer("1 + 1 = 2", return_tensors="pt")["input_ids"]')
    cut = (f"last = int(torch.isin(ids[0], torch.tensor({list(ends)})).nonzero()[-1])  # where the answer ends\n"
           "ids = ids[:, : last + 1]\n" if has_template else "")
    peft = ("\n`adapter/` holds the same as a peft adapter of task type SEQ_CLS: load it on the base with "
            "`num_labels=1` and this model's `pad_token_id`.\n" if has_adapter else "")
    (folder / "README.md").write_text(f"""---
library_name: transformers
pipeline_tag: text-classification
base_model: {name}
tags: [danlu, reward-model]
---

# {folder.name.strip('.').removesuffix('.partial')}

A reward model: one label, whose score is the reward of the last answer; higher is better.
{_made(name, adapters, dtype)}

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".", dtype="auto").eval()
{encode}
{cut}print(model(ids).logits[0, 0])
```
{peft}""", encoding="utf-8")


def _made(name: str, adapters: tuple[str, ...], dtype: str) -> str:
    what = f" with {len(adapters)} adapter(s) merged: {', '.join(Path(a).name for a in adapters)}"
    return (f"{name}{what if adapters else ', saved anew'}; weights in {dtype}. Exported by danlu {version('danlu')}: "
            "`export_report.json` holds the checks it passed.")
