"""Answers per second at batch 32: danlu's slots against `model.generate` of transformers.

    python benchmarks/generation.py [--rounds 3] [--threads 1] [--vocab 8192] [--rows 64] [--bf16] [--only mixed]
                                    [--write]

The model is a 10 M Llama with random weights. Two shapes: all answers of one length (the case without padding to win
on), and log-normal lengths, where a batch of `generate` runs until its longest answer ends. Each with one and with
eight answers to a prompt. Lengths are fixed beforehand, the same for all: a row stops when it has its number of tokens.
Peers: `generate` with its default cache and with a static one, both drawing by torch.multinomial at temperature 1
without recording log-probabilities, and danlu's own batch generator, which draws as the slots do and records them.
All are timed in turns, so that a slow spell of the machine meets each, and in CPU seconds of this process, so that
other processes count less; medians are printed.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig as ModelGenerationConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import LogitsProcessorList

from danlu.generation.config import GenerationConfig
from danlu.generation.rollouts import Request, RolloutGenerator
from danlu.generation.sampling import RowSampler

BATCH = 32
POLICY = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Work:
    """Prompts, and of each answer its prompt and its length in tokens."""

    name: str
    prompts: list[list[int]]
    answers: list[tuple[int, int]]


def make_model(vocab_size: int) -> LlamaForCausalLM:
    """A Llama of 4 layers, 320 wide, grouped queries, head and embedding apart."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab_size, hidden_size=320, intermediate_size=864, num_hidden_layers=4, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=2048, eos_token_id=None, attn_implementation="sdpa")).eval()


def make_work(vocab_size: int, mixed: bool, samples: int, rows: int) -> Work:
    """`rows` answers; prompts have about 64 tokens; mixed answers about 35, up to 128."""
    rng, draw = np.random.default_rng(0), random.Random(0)

    def length(middle: float, spread: float, low: int, high: int) -> int:
        return int(min(high, max(low, draw.lognormvariate(np.log(middle), spread))))

    prompts = [length(64, 0.5, 8, 256) if mixed else 64 for _ in range(rows // samples)]
    answers = [length(24, 0.9, 4, 128) if mixed else 64 for _ in range(rows)]
    return Work(
        f"{'mixed' if mixed else 'equal'} lengths, n = {samples}",
        [rng.integers(3, vocab_size, n).tolist() for n in prompts],
        [(row // samples, n) for row, n in enumerate(answers)])


class RowLimits(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its own number of tokens."""

    def __init__(self, width: int, limits: Sequence[int]) -> None:
        self._width, self._limits = width, torch.tensor(list(limits))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] - self._width >= self._limits


def by_generate(model: LlamaForCausalLM, work: Work, *, cache: str | None = None, record: bool = False) -> None:
    """Batches of prompts of similar length, each until its longest answer ends; `record` draws as danlu does."""
    order = sorted(work.answers, key=lambda answer: len(work.prompts[answer[0]]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        prompts, limits = [work.prompts[prompt] for prompt, _ in batch], [limit for _, limit in batch]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        processors = LogitsProcessorList()
        if record:
            pads, seeds = [width - len(p) for p in prompts], [(1, start, row) for row in range(len(batch))]
            processors.append(RowSampler(POLICY, pads, seeds, max(limits), with_logps=True))
        settings = ModelGenerationConfig(
            max_new_tokens=max(limits), do_sample=not record, top_k=0, pad_token_id=0, cache_implementation=cache,
            disable_compile=True)
        model.generate(
            ids, attention_mask=mask, generation_config=settings, logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([RowLimits(width, limits)]))


def ways_of(model: LlamaForCausalLM) -> dict[str, Callable[[Work], object]]:
    """Return what is compared; the first is danlu."""
    slots = RolloutGenerator(model, PreTrainedTokenizerFast(tokenizer_object=_empty_tokenizer()), batch_size=BATCH)

    def by_slots(work: Work) -> object:
        requests = [Request(prompt, (1, row), limit) for row, (prompt, limit) in enumerate(work.answers)]
        rows = slots.complete(work.prompts, requests, POLICY)
        assert [len(row.ids) for row in rows] == [limit for _, limit in work.answers]
        return rows

    return {
        "slots": by_slots, "generate": lambda work: by_generate(model, work),
        "generate, static cache": lambda work: by_generate(model, work, cache="static"),
        "danlu batches": lambda work: by_generate(model, work, record=True)}


def _empty_tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))


def compare(work: Work, ways: dict[str, Callable[[Work], object]], rounds: int) -> dict[str, Any]:
    """Time all ways in turns and return their medians, in new tokens per second."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    tokens = sum(limit for _, limit in work.answers)
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way(work)
            times[name].append(time.process_time() - start)
    speeds = {name: tokens / statistics.median(values) for name, values in times.items()}
    best = max(speed for name, speed in speeds.items() if name.startswith("generate"))
    return {
        "work": work.name, "new_tokens": tokens, "tokens_per_second": {n: round(s, 1) for n, s in speeds.items()},
        "seconds": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "ratio_to_best_generate": round(speeds["slots"] / best, 2)}


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Write results/generation.json and .md; rows of other work measured under the same facts stay."""
    facts = {
        "date": date.today().isoformat(), "torch": torch.__version__, "threads": arguments.threads, "batch": BATCH,
        "vocabulary": arguments.vocab, "dtype": "bfloat16" if arguments.bf16 else "float32", "rows": arguments.rows}
    name = f"generation{'_bf16' if arguments.bf16 else ''}"
    path = RESULTS / f"{name}.json"
    former = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if {key: former.get(key) for key in facts} == facts:
        fresh = {row["work"] for row in rows}
        rows = [*rows, *(row for row in former["measured"] if row["work"] not in fresh)]
    rows = sorted(rows, key=lambda row: str(row["work"]))
    path.write_text(json.dumps({**facts, "measured": rows}, indent=1) + "\n", encoding="utf-8")
    names = list(rows[0]["tokens_per_second"])
    lines = [
        f"# Generation at batch {BATCH}, new tokens per second, {facts['date']}", "",
        f"`python benchmarks/generation.py`: {facts['dtype']}, {arguments.threads} thread(s) of a two-core CPU that "
        f"others used too; seconds of this process's CPU time, medians of rounds in turns, {arguments.rows} "
        f"answers, vocabulary {arguments.vocab}.", "",
        f"| work | {' | '.join(names)} | slots / best generate |", "|---" * (len(names) + 2) + "|"]
    lines += [
        f"| {row['work']} | " + " | ".join(f"{row['tokens_per_second'][n]:,.0f}" for n in names)
        + f" | {row['ratio_to_best_generate']:.2f} |" for row in rows]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the arguments, compare on four kinds of work, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--only", default="", help="measure the work whose name holds this, for instance: mixed")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = make_model(arguments.vocab)
    ways = ways_of(model.bfloat16() if arguments.bf16 else model)
    results = []
    for mixed in (False, True):
        for samples in (1, 8):
            work = make_work(arguments.vocab, mixed, samples, arguments.rows)
            if arguments.only not in work.name:
                continue
            results.append(compare(work, ways, arguments.rounds))
            print(json.dumps(results[-1]), flush=True)
    if arguments.write:
        write(results, arguments)


if __name__ == "__main__":
    main()
