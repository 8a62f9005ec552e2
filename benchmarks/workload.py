"""What the benchmarks run on: models and data of stated shape, written to disk once, the same bytes for every trainer.

A word of text is exactly one token, so that every trainer sees the same tokens whatever its tokenising code does. A row
is `<|user|> prompt <|assistant|> answer </s>`.
"""

import hashlib
import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SPECIAL = ["<unk>", "<pad>", "</s>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% else %}<|assistant|>{{ m['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}")
AROUND = 3
"""Tokens of the template in each row."""
RANKED = 4
"""Answers of a ranked row, as long as the row's answer."""
ANSWER_TOKENS = 64
"""Length of sampled answers; a random model ends next to none of them earlier."""
GROUP = 8
"""Answers sampled for each prompt by GRPO."""
SAMPLED = {"ppo": 1, "grpo": GROUP}
"""Stages whose tok/s counts sampled answers, and how many answers each prompt gets."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama: what it measures, not what it knows."""

    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int

    @property
    def body(self) -> int:
        """Weights of the body's matrices (Nb)."""
        kv = self.hidden * self.kv_heads // self.heads
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * kv + 3 * self.hidden * self.inner)

    @property
    def head(self) -> int:
        """Weights of the vocabulary head (Nh), tied to the embedding."""
        return self.vocab_size * self.hidden


SHAPES = {
    "8k": Shape(8192, 384, 6, 6, 2, 1024),
    "152k": Shape(151_936, 128, 8, 4, 2, 352),
    "tiny": Shape(512, 64, 2, 4, 2, 128),
}
"""8k: 13 M parameters, most of them in the body; 152k: 20 M, nearly all of them in the vocabulary."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long rows are: log-normal between two bounds, or all at the upper one."""

    low: int
    high: int
    median: float
    uniform: bool = False
    supervised: float = 0.61

    def draw(self, rng: random.Random) -> tuple[int, int]:
        """Return tokens of a prompt and of an answer, without those of the template."""
        total = self.high if self.uniform else round(
            min(self.high, max(self.low, rng.lognormvariate(0.0, 0.7) * self.median)))
        share = self.supervised if self.uniform else min(0.9, max(0.2, rng.gauss(self.supervised, 0.12)))
        answer = max(1, round(total * share) - 1)
        return max(1, total - answer - AROUND), answer


LENGTHS = {"uniform": Lengths(512, 512, 512, uniform=True), "log-normal": Lengths(30, 500, 150),
           "tiny": Lengths(8, 40, 16)}


@dataclass(frozen=True, slots=True)
class Workload:
    """A model and data on disk. `rows` are in the order in which every trainer meets them."""

    folder: Path
    shape: Shape
    lengths: Lengths
    rows: list[dict[str, Any]]

    def model(self, *, scores: bool) -> Path:
        """Return the base model's folder; with a scoring head that every trainer reads, for reward models."""
        return self.folder / ("scoring" if scores else "model")

    def tokens(self, kind: str, start: int, end: int) -> int:
        """Return the real tokens of rows start to end as trainers without shared prompts see them."""
        return sum(row_tokens(row, kind) for row in self.rows[start:end])


def row_tokens(row: dict[str, Any], kind: str) -> int:
    """Return the tokens of a row: of both full sequences for pairs."""
    sizes = row["sizes"]
    if kind == "ranked":  # both full sequences of all pairs: K - 1 times each answer
        return RANKED * (RANKED - 1) * (sizes["prompt"] + AROUND + sizes["answer"])
    if kind == "pairs":
        return 2 * (sizes["prompt"] + AROUND) + sizes["answer"] + sizes["other"]
    return sizes["prompt"] + AROUND + sizes["answer"]


def make_workload(root: Path, shape_name: str, lengths_name: str, num_rows: int) -> Workload:
    """Write, or find again, a model and data sets of every kind."""
    shape, lengths = SHAPES[shape_name], LENGTHS[lengths_name]
    source = json.dumps([asdict(shape), asdict(lengths), num_rows, CHAT_TEMPLATE])
    key = hashlib.sha256((source + Path(__file__).read_text("utf-8")).encode()).hexdigest()[:12]
    folder = root / f"{shape_name}-{lengths_name}-{key}"
    rows = make_rows(shape, lengths, num_rows)
    if not (folder / "done").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder / "model", shape)
        write_scoring(folder / "model", folder / "scoring", shape)
        write_data(folder, rows)
        (folder / "done").touch()
    return Workload(folder, shape, lengths, rows)


def make_rows(shape: Shape, lengths: Lengths, num_rows: int) -> list[dict[str, Any]]:
    """Draw prompts, two answers each, and a verdict on the first."""
    rng = random.Random(0)

    def words(number: int) -> str:
        return " ".join(f"w{rng.randrange(len(SPECIAL), shape.vocab_size)}" for _ in range(number))

    rows = []
    for index in range(num_rows):
        prompt, answer = lengths.draw(rng)
        other = answer if lengths.uniform else max(1, round(answer * rng.uniform(0.6, 1.4)))
        rows.append({"prompt": words(prompt), "answer": words(answer), "other": words(other),
                     "ranked": [words(answer) for _ in range(RANKED)], "label": index % 2 == 0,
                     "sizes": {"prompt": prompt, "answer": answer, "other": other}})
    return rows


def write_model(folder: Path, shape: Shape) -> None:
    """Write a random Llama and its word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None, eos_token_id=2,
        pad_token_id=1)).save_pretrained(folder)
    words = {word: index for index, word in enumerate(SPECIAL)}
    words |= {f"w{index}": index for index in range(len(SPECIAL), shape.vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>"], chat_template=CHAT_TEMPLATE).save_pretrained(folder)


def write_scoring(base: Path, folder: Path, shape: Shape) -> None:
    """Copy a model and give it one scoring head under the names that transformers, TRL and danlu read, no dropout."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder, dirs_exist_ok=True)
    torch.manual_seed(1)
    head = torch.randn(1, shape.hidden) / (shape.hidden + 1) ** 0.5
    weights = folder / "model.safetensors"
    save_file(load_file(weights) | {"score.weight": head}, weights, {"format": "pt"})
    save_file({"v_head.summary.weight": head.clone(), "v_head.summary.bias": torch.zeros(1)},
              folder / "value_head.safetensors")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"summary_dropout_prob": 0.0}), encoding="utf-8")


def write_data(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows as dialogues, prose, pairs, verdicts and prompts, with a registry that names the files."""
    kinds = {
        "chat": [{"instruction": r["prompt"], "input": "", "output": r["answer"]} for r in rows],
        "prose": [{"text": f"{r['prompt']} {r['answer']}"} for r in rows],
        "pairs": [{"instruction": r["prompt"], "input": "", "chosen": r["answer"], "rejected": r["other"]}
                  for r in rows],
        "verdicts": [{"instruction": r["prompt"], "input": "", "output": r["answer"], "kto_tag": r["label"]}
                     for r in rows],
        "ranked": [{"prompt": r["prompt"], "answers": r["ranked"], "ranks": list(range(1, RANKED + 1))} for r in rows],
        "ranked_pairs": [{"instruction": r["prompt"], "input": "", "chosen": r["ranked"][i], "rejected": r["ranked"][j]}
                         for r in rows for i in range(RANKED) for j in range(i + 1, RANKED)],
        "prompts": [{"instruction": r["prompt"], "input": "", "output": ""} for r in rows]}
    columns = {
        "prose": {"prompt": "text"}, "pairs": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
        "ranked_pairs": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
        "verdicts": {"prompt": "instruction", "response": "output", "kto_tag": "kto_tag"}}
    registry: dict[str, Any] = {}
    for kind, found in kinds.items():
        (folder / f"{kind}.json").write_text(json.dumps(found), encoding="utf-8")
        registry[kind] = {"file_name": f"{kind}.json"} | ({"columns": columns[kind]} if kind in columns else {})
    for kind in ("pairs", "ranked_pairs"):
        registry[kind]["ranking"] = True
    (folder / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")
