"""Tokenise and pack: danlu against TRL and LLaMA-Factory on the same dialogues and tokenizer, in turns.

    python -m benchmarks.tokenise [--rows 20000] [--rounds 3] [--keep]

The dialogues are sentences of this repository's pages, shuffled; the tokenizer is a byte-level BPE of 8k tokens made of
them. Each side is timed inside its own process from rows on disk or in memory to packs; danlu writes them to its cache.
Peers run with their default of one process and with one for each core, and the faster one counts.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from benchmarks.measure import BENCH, ROOT, environment, fresh, keep_results, machine, replace_between
from benchmarks.workload import CHAT_TEMPLATE, SPECIAL

LENGTH = 1024
PEERS = {"TRL": ("trl", "trl_tokenise.py"), "LLaMA-Factory": ("llamafactory", "llamafactory_tokenise.py")}


def write_work(folder: Path, num_rows: int) -> None:
    """Write the dialogues, their registry, and a tiny model with the tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    text = "\n".join(page.read_text("utf-8") for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]))
    sentences = [one for one in re.split(r"(?<=[.。:])\s+", text) if len(one) > 20]
    rng = random.Random(0)
    rows = [{"instruction": " ".join(rng.choices(sentences, k=rng.randint(1, 3))), "input": "",
             "output": " ".join(rng.choices(sentences, k=rng.randint(1, 8)))} for _ in range(num_rows)]
    (folder / "talk.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"talk": {"file_name": "talk.json"}}), encoding="utf-8")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.train_from_iterator(sentences, trainers.BpeTrainer(
        vocab_size=8192, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE).save_pretrained(folder / "model")
    LlamaForCausalLM(LlamaConfig(
        vocab_size=8192, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2)).save_pretrained(folder / "model")


def own(folder: Path) -> None:
    """Print the seconds danlu takes, and the tokens it finds; runs in a process of its own."""
    from danlu.recipe import prepare
    from danlu.run_config import load_run_config

    config = load_run_config(None, [
        "stage=sft", "do_train=true", f"model_name_or_path={folder / 'model'}", f"dataset_dir={folder}",
        "dataset=talk", "packing=true", f"cutoff_len={LENGTH}", "overwrite_cache=true", f"output_dir={folder / 'out'}"],
        "train")
    began = time.perf_counter()
    prepared = prepare(config)
    seconds = time.perf_counter() - began
    assert prepared.train is not None
    print("RESULT", seconds, sum(prepared.train.lengths))


def run_own(folder: Path) -> tuple[float, int]:
    """Return danlu's seconds and tokens."""
    run = subprocess.run([sys.executable, "-m", "benchmarks.tokenise", "--own", str(folder)], check=True, text=True,
                         capture_output=True, env=environment(os.cpu_count() or 1) | {"TOKENIZERS_PARALLELISM": "true"})
    words = next(line.split() for line in run.stdout.splitlines() if line.startswith("RESULT"))
    return float(words[1]), int(words[2])


def run_peer(name: str, folder: Path, workers: int | None) -> float:
    """Return a peer's seconds."""
    place, script = PEERS[name]
    asked, answered = folder / "asked.json", folder / "answered.json"
    answered.unlink(missing_ok=True)
    asked.write_text(json.dumps({"model": str(folder / "model"), "data": str(folder / "talk.json"), "length": LENGTH,
                                 "output": str(folder / "out"), "workers": workers}), encoding="utf-8")
    # A cache of its own, empty each time: datasets would otherwise find its former result.
    cache = fresh(BENCH / "hf")
    subprocess.run([str(BENCH / place / "bin/python"), str(ROOT / "benchmarks/peers" / script), str(asked),
                    str(answered)], check=True, capture_output=True,
                   env=environment(os.cpu_count() or 1) | {"HF_DATASETS_CACHE": str(cache),
                                                           "TOKENIZERS_PARALLELISM": "true"})
    return float(json.loads(answered.read_text("utf-8"))["seconds"])


def table(times: dict[str, list[float]], tokens: int, rows: int) -> list[str]:
    """Return the Markdown of the results."""
    hardware = machine()
    lines = [
        f"`python -m benchmarks.tokenise`, {date.today().isoformat()}: {rows:,} dialogues, {tokens:,} tokens, packs of",
        f"{LENGTH}, {hardware['processor']}, load {hardware['load']}, rounds (their median counts): "
        f"{len(times['danlu'])}.", "",
        "| | seconds | tok/s | danlu is times as fast |", "|---|---|---|---|"]
    for label, found in times.items():
        ratio = statistics.median(b / a for a, b in zip(times["danlu"], found, strict=True))
        middle = statistics.median(found)
        lines.append(
            f"| {label} | {middle:.2f} | {tokens / middle:,.0f} | {'' if label == 'danlu' else f'{ratio:.1f}'} |")
    return lines


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/ and docs/performance.md")
    parser.add_argument("--own", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.own:
        own(chosen.own)
        return
    folder = fresh(BENCH / "work" / "tokenise")
    folder.mkdir(parents=True)
    write_work(folder, chosen.rows)
    times: dict[str, list[float]] = {}
    tokens = 0
    for _ in range(chosen.rounds):
        seconds, tokens = run_own(folder)
        times.setdefault("danlu", []).append(seconds)
        for name in [one for one in PEERS if (BENCH / PEERS[one][0] / "bin/python").is_file()]:
            for workers in (None, os.cpu_count()):
                label = f"{name}, {'its default' if workers is None else f'{workers} processes'}"
                times.setdefault(label, []).append(run_peer(name, folder, workers))
        print({label: [round(one, 2) for one in found] for label, found in times.items()}, flush=True)
    lines = table(times, tokens, chosen.rows)
    print("\n".join(lines))
    if chosen.keep:
        record = {"date": date.today().isoformat(), "machine": machine(), "rows": chosen.rows, "tokens": tokens,
                  "length": LENGTH, "seconds": times}
        keep_results("tokenise", record, ["# Tokenise and pack", "", *lines])
        replace_between(ROOT / "docs/performance.md", "tokenise", lines)


if __name__ == "__main__":
    main()
