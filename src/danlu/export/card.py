"""The README.md of an exported model: what it is made of and how to ask it. Knows nothing of weights."""

from importlib.metadata import version
from pathlib import Path


def write_card(folder: Path, *, base: str, adapters: tuple[str, ...], dtype: str, has_template: bool) -> None:
    """Write a model card with the front matter that model hubs read."""
    name = Path(base).name or base
    made = f"{name} with {len(adapters)} adapter(s) merged: {', '.join(Path(a).name for a in adapters)}" \
        if adapters else f"{name}, saved anew"
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

{made}; weights in {dtype}. Exported by danlu {version("danlu")}: `export_report.json` holds the checks it passed.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")
{ask}
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=64)[0]))
```
""", encoding="utf-8")
