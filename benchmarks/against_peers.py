"""danlu against TRL and LLaMA-Factory: same model, data, order, precision and optimiser, in turns, losses compared.

    python -m benchmarks.against_peers [--only CASE ...] [--rounds 3] [--steps 6] [--warm 2] [--threads N]
                                       [--peers WORD ...] [--cpu-time]

Each round runs danlu and every peer once, one after another, so that a slow spell of the machine meets all of them.
A peer that computes the reference's log-probabilities before its first step, untimed, meets a second run of danlu,
which finds them where the first has kept them.
Results go to benchmarks/results/peers.{json,md}; a case that is run again replaces its former result.
"""

import argparse
import json
import os
import statistics
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    BENCH,
    RESULTS,
    ROOT,
    Measured,
    Task,
    Timing,
    keep_results,
    machine,
    replace_between,
    run_danlu,
    run_peer,
)
from benchmarks.workload import ANSWER_TOKENS, GROUP, SAMPLED, make_workload

LOSS_TOLERANCE = 1e-3
COMPARED_STEPS = 3
PLAIN = {"bf16": False, "gradient_checkpointing": False}

PREFACE = (
    "# danlu against its peers", "",
    "`make bench-peers`: the same model, rows, order, optimiser and threads, in turns; medians over the rounds.",
    "tok/s counts real tokens (of both full sequences of a pair; of sampled answers). `danlu is` and `in bf16` are the",
    "speeds of danlu in fp32 and in bf16 over the peer's in the same round. `loss` is the largest relative difference",
    f"to danlu's fp32 loss in the first {COMPARED_STEPS} steps; it is empty where the steps hold other rows or run in",
    "bf16, and for danlu in bf16 it tells what bf16 changes. Peers that precompute the reference's log-probabilities",
    "do so before their first step, untimed: they are compared with a second run of danlu, which has kept them.")


@dataclass(frozen=True, slots=True)
class OwnRun:
    """A way to run danlu.

    label  what the ratios of its speed are called
    kept   it finds the reference's log-probabilities where the run before it has kept them
    """

    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    needs_bf16: bool = False
    kept: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.label}, reference kept" if self.kept else self.label


OURS = (OwnRun("danlu"), OwnRun("danlu bf16", {"bf16": True}, needs_bf16=True))


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to run a peer.

    compares    its steps hold the same rows in fp32, so that its losses must be danlu's
    precomputes the reference's log-probabilities are there before its first step
    """

    name: str
    environment: str
    script: str
    settings: dict[str, Any] = field(default_factory=dict)
    compares: bool = True
    needs_bf16: bool = False
    precomputes: bool = False

    @property
    def python(self) -> Path:
        """The peer's interpreter."""
        return BENCH / self.environment / "bin/python"


def trl(name: str, compares: bool = True, **settings: Any) -> Peer:
    """Return a variant of TRL."""
    return Peer(f"TRL {name}", "trl", "trl_run.py", settings, compares, bool(settings.get("bf16")),
                bool(settings.get("precompute_ref_log_probs")))


def factory(name: str = "fp32", compares: bool = True, **settings: Any) -> Peer:
    """Return a variant of LLaMA-Factory."""
    return Peer(f"LLaMA-Factory {name}", "llamafactory", "llamafactory_run.py", settings, compares,
                bool(settings.get("bf16")))


def factories(**settings: Any) -> tuple[Peer, ...]:
    """Return LLaMA-Factory in fp32, its default on a processor, and in bf16."""
    return factory(**settings), factory("bf16", compares=False, bf16=True, use_cpu=True, **settings)


DEFAULTS = trl("defaults (bf16, checkpointing)", compares=False)
FP32 = trl("fp32", **PLAIN)
BF16 = trl("bf16", compares=False, bf16=True, gradient_checkpointing=False)
GROUPED = trl("fp32, grouped by length", compares=False, **PLAIN, train_sampling_strategy="group_by_length")
GROUPED_BF16 = trl("bf16, grouped by length", compares=False, bf16=True, gradient_checkpointing=False,
                   train_sampling_strategy="group_by_length")
# A pack at a time and three of them a step: as many tokens a step as the others see, at TRL's best, since its
# attention is quadratic in all tokens of a micro-batch where no flash-attention kernel is at hand.
PACKS = {"packing": True, "max_length": 1024, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
PACKED = trl("packing, fp32", compares=False, **PLAIN, **PACKS)
PACKED_BF16 = trl("packing, bf16", compares=False, bf16=True, gradient_checkpointing=False, **PACKS)
# The reference's pass over all rows comes before the first step.
READY = {"precompute_ref_log_probs": True}
REFERRED = trl("fp32, reference precomputed", **PLAIN, **READY)
REFERRED_BF16 = trl("bf16, reference precomputed", compares=False, bf16=True, gradient_checkpointing=False, **READY)
# Its masks of packs are not of ones and zeros, so that tokens are counted with the little padding of the last of them.
FACTORY_PACKED = factory("neat packing, fp32", compares=False, packing=True, neat_packing=True,
                         per_device_train_batch_size=1, gradient_accumulation_steps=3,
                         include_num_input_tokens_seen="all")
PPO = Peer("TRL 0.24 fp32", "trl024", "trl_ppo_run.py", {"response_length": ANSWER_TOKENS, "num_ppo_epochs": 4},
           compares=False)
PPO_BF16 = replace(PPO, name="TRL 0.24 bf16", settings=PPO.settings | {"bf16": True}, needs_bf16=True)
GRPO = Peer("TRL fp32", "trl", "trl_grpo_run.py", {"num_generations": GROUP, **PLAIN}, compares=False)
GRPO_BF16 = Peer("TRL bf16", "trl", "trl_grpo_run.py",
                 {"num_generations": GROUP, "bf16": True, "gradient_checkpointing": False}, compares=False,
                 needs_bf16=True)


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the comparison."""

    stage: str
    method: str
    shape: str
    lengths: str
    peers: tuple[Peer, ...]
    batch: int = 8
    accumulation: int = 2
    loss_tolerance: float = LOSS_TOLERANCE
    kind: str = ""


CASES = {
    "sft-uniform": Case("sft", "full", "8k", "uniform", (DEFAULTS, FP32, BF16, PACKED, PACKED_BF16, *factories()),
                        batch=4, accumulation=1),
    "dpo-uniform": Case("dpo", "full", "8k", "uniform", (FP32, BF16, *factories(pref_loss="sigmoid")), batch=4,
                        accumulation=1),
    "sft": Case("sft", "full", "8k", "log-normal",
                (DEFAULTS, FP32, GROUPED, GROUPED_BF16, PACKED, PACKED_BF16, *factories())),
    "sft-packing": Case("sft", "full", "8k", "log-normal", (PACKED, PACKED_BF16, FACTORY_PACKED)),
    "sft-lora": Case("sft", "lora", "8k", "log-normal",
                     (DEFAULTS, FP32, GROUPED_BF16, PACKED, PACKED_BF16, *factories())),
    "sft-qlora": Case("sft", "qlora", "8k", "log-normal",
                      (DEFAULTS, FP32, PACKED, PACKED_BF16, factory(quantization_bit=4))),
    "dpo": Case("dpo", "full", "8k", "log-normal",
                (DEFAULTS, FP32, BF16, REFERRED, REFERRED_BF16, *factories(pref_loss="sigmoid"))),
    "dpo-lora": Case("dpo", "lora", "8k", "log-normal",
                     (DEFAULTS, FP32, BF16, REFERRED, *factories(pref_loss="sigmoid"))),
    "rm": Case("rm", "full", "8k", "log-normal", (DEFAULTS, FP32, BF16, *factories())),
    "rm-lora": Case("rm", "lora", "8k", "log-normal", (DEFAULTS, FP32, BF16, *factories())),
    "rm-ranked": Case("rm", "full", "8k", "log-normal", (FP32, BF16, factory()), batch=4, accumulation=1,
                      kind="ranked"),
    "kto": Case("kto", "full", "8k", "log-normal", (DEFAULTS, FP32, BF16, REFERRED, *factories()), batch=16,
                accumulation=1, loss_tolerance=5e-3),
    "kto-lora": Case("kto", "lora", "8k", "log-normal", (DEFAULTS, FP32, BF16, *factories()), batch=16, accumulation=1,
                     loss_tolerance=5e-3),
    "ppo": Case("ppo", "full", "8k", "log-normal", (PPO, PPO_BF16)),
    "grpo": Case("grpo", "full", "8k", "log-normal", (GRPO, GRPO_BF16), batch=4, accumulation=1),
    "sft-152k": Case("sft", "full", "152k", "log-normal", (DEFAULTS, FP32, PACKED, PACKED_BF16, *factories()), batch=4,
                     accumulation=4),
    "dpo-152k": Case("dpo", "full", "152k", "log-normal", (FP32, factory(pref_loss="sigmoid")), batch=4,
                     accumulation=2),
}
"""The unfavourable case first. KTO: one micro-batch a step, as peers take the KL baseline over a micro-batch; their
mismatched answers are others, which its tolerance covers. PPO: 4 epochs over a step's answers; tok/s counts answers.
GRPO: `batch` prompts a step, a group of answers each. rm-ranked: four ranked answers a prompt, for peers all six pairs
of them; tok/s counts the tokens of the six pairs for all."""


def measure_case(name: str, case: Case, steps: int, warm: int, rounds: int, timing: Timing) -> dict[str, Any]:
    """Run a case in turns; return its record."""
    task = Task(case.stage, case.method, steps, warm, case.batch, case.accumulation, kind=case.kind)
    work = make_workload(BENCH / "work", case.shape, case.lengths, task.rows)
    hardware = machine()
    peers = [peer for peer in case.peers if peer.python.is_file()
             and (hardware["bf16 in hardware"] or not peer.needs_bf16)]
    kinds = (False, True) if any(peer.precomputes for peer in peers) else (False,)
    ours = [replace(own, kept=kept) for own in OURS if hardware["bf16 in hardware"] or not own.needs_bf16
            for kept in kinds]
    runs: dict[str, list[Measured]] = {one.name: [] for one in (*ours, *peers)}
    failed: dict[str, str] = {}
    for turn in range(rounds):
        for own in ours:
            runs[own.name].append(run_danlu(task, work, timing, own.settings, keeps_cache=own.kept))
            tell(name, turn, own.name, runs[own.name][-1])
        for peer in [one for one in peers if one.name not in failed]:
            try:
                runs[peer.name].append(run_peer(peer.python, peer.script, task, work, timing, peer.settings))
            except RuntimeError as error:
                failed[peer.name] = str(error).strip().splitlines()[-1]
                print(f"{name}: {peer.name} failed: {error}", flush=True)
                continue
            tell(name, turn, peer.name, runs[peer.name][-1])
    record = {
        "date": date.today().isoformat(), "machine": hardware, **asdict(timing), "task": asdict(task),
        "shape": case.shape, "lengths": case.lengths, "rounds": rounds, "failed": failed,
        "runs": {key: [asdict(one) for one in found] for key, found in runs.items()},
        "summary": [summary(own.name, runs, is_own=True, compares=own == OURS[0]) for own in ours] + [
            summary(peer.name, runs, compares=peer.compares,
                    against={own.label: own.name for own in ours if own.kept == peer.precomputes})
            for peer in peers if runs[peer.name]]}
    check_losses(name, case, record)
    return record


def tell(case: str, turn: int, who: str, run: Measured) -> None:
    """Print a run as soon as it is done."""
    print(f"{case} round {turn + 1}: {who:40s} {run.tokens_per_second:7.0f} tok/s  first step {run.first_step:5.1f} s  "
          f"{run.peak_memory:6.0f} MiB  {run.problem}", flush=True)


def summary(name: str, runs: dict[str, list[Measured]], *, compares: bool, is_own: bool = False,
            against: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the medians of a contestant.

    against  danlu's runs that it is compared with, by what the ratio is called
    """
    mine = runs[name]
    pairs = list(zip(runs[OURS[0].name][0].losses, mine[0].losses, strict=False))[:COMPARED_STEPS]
    return {
        "name": name, "own": is_own, "tokens_per_second": statistics.median(run.tokens_per_second for run in mine),
        "ratios": {label: statistics.median(one.tokens_per_second / run.tokens_per_second
                                            for one, run in zip(runs[own], mine, strict=False))
                   for label, own in (against or {}).items()},
        "first_step": statistics.median(run.first_step for run in mine),
        "peak_memory": statistics.median(run.peak_memory for run in mine),
        "loss_difference": max((abs(a - b) / max(abs(a), 1e-9) for a, b in pairs), default=0.0),
        "compares": compares, "versions": mine[0].versions}


def check_losses(name: str, case: Case, record: dict[str, Any]) -> None:
    """Refuse a comparison of runs that do not train the same thing."""
    wrong = {line["name"]: line["loss_difference"] for line in record["summary"]
             if line["compares"] and line["loss_difference"] > case.loss_tolerance}
    if wrong:
        raise SystemExit(f"{name}: the losses of the first {COMPARED_STEPS} steps differ by {wrong}, "
                         f"more than {case.loss_tolerance}")


def write(records: dict[str, Any]) -> None:
    """Write the results as JSON and as tables, and the overview into docs/performance.md."""
    ordered = {name: records[name] for name in CASES if name in records}
    keep_results("peers", ordered, tables(ordered))
    replace_between(ROOT / "docs/performance.md", "peers", overview(ordered))


def overview(records: dict[str, Any]) -> list[str]:
    """Return one line a case: danlu over each peer's fastest variant in fp32, over its fastest of all, and defaults."""
    lines = ["| case | danlu tok/s: fp32, bf16 | over TRL fp32 | over LLaMA-Factory fp32 | bf16 over the best bf16 "
             "| bf16 over TRL's defaults | MiB: danlu, lowest peer | timed by |", "|---|---|---|---|---|---|---|---|"]
    for name, record in records.items():
        labels = [own.label for own in OURS]
        own = {line["name"]: line for line in record["summary"] if line["name"] in labels}
        peers = [line for line in record["summary"] if not line["own"]]
        trl = [p for p in peers if p["name"].startswith("TRL")]
        cells = [
            over("danlu", [p for p in trl if "bf16" not in p["name"]]),
            over("danlu", [p for p in peers if p["name"].startswith("LLaMA") and "bf16" not in p["name"]]),
            over("danlu bf16", [p for p in peers if "bf16" in p["name"]], is_whole=True),
            over("danlu bf16", [p for p in trl if "defaults" in p["name"]]).partition(" ")[0]]
        speeds = ", ".join(f"{line['tokens_per_second']:,.0f}" for line in own.values())
        memory = f"{own['danlu']['peak_memory']:,.0f}, {min(p['peak_memory'] for p in peers):,.0f}" if peers else ""
        lines.append(f"| {name} | {speeds} | {' | '.join(cells)} | {memory} | "
                     f"{rounds_of(record)}, {timed(record)}, load {record['machine']['load']} |")
    return lines


def rounds_of(record: dict[str, Any]) -> str:
    """Say how often a case was run."""
    return "a single run" if record["rounds"] == 1 else f"{record['rounds']} rounds"


def over(own: str, peers: list[dict[str, Any]], *, is_whole: bool = False) -> str:
    """Return how many times as fast as the fastest of these peers a variant of danlu is; empty where not measured."""
    known = [peer for peer in peers if own in peer["ratios"]]
    if not known:
        return ""
    best = min(known, key=lambda peer: peer["ratios"][own])
    return f"{best['ratios'][own]:.2f}x ({best['name'] if is_whole else best['name'].partition(' ')[2]})"


def tables(records: dict[str, Any]) -> list[str]:
    """Return the Markdown of all cases."""
    lines = list(PREFACE)
    for name, record in records.items():
        task, hardware = record["task"], record["machine"]
        lines += ["", f"## {name}", "", (
            f"{task['stage']} {task['method']}, {record['shape']} vocabulary, {record['lengths']} lengths, "
            f"{task['batch']} x {task['accumulation']} rows a step; {rounds_of(record)} of {task['steps']} steps "
            f"({task['warm']} to warm up), {timed(record)}, {hardware['processor']}, bf16 in hardware: "
            f"{'yes' if hardware['bf16 in hardware'] else 'no'}, load {hardware['load']} before the run, "
            f"{record['date']}."), "",
            "| | tok/s | danlu is | in bf16 | loss | first step s | peak MiB |", "|---|---|---|---|---|---|---|"]
        for line in record["summary"]:
            is_told = line["compares"] or (line["own"] and task["stage"] not in SAMPLED)
            loss = f"{line['loss_difference']:.0e}" if is_told and line["name"] != "danlu" else ""
            ratios = [f"{line['ratios'][own.label]:.2f}" if own.label in line["ratios"] else "" for own in OURS]
            lines.append(f"| {line['name']} | {line['tokens_per_second']:,.0f} | {' | '.join(ratios)} | {loss} | "
                         f"{line['first_step']:.1f} | {line['peak_memory']:,.0f} |")
        lines += [f"\n{peer} did not run: {why}" for peer, why in record["failed"].items()]
        packages: dict[str, str] = {}
        for line in record["summary"]:
            label = line["name"].split(" ")[0].rstrip(",")
            packages.setdefault(label, ", ".join(f"{key} {value}" for key, value in line["versions"].items()))
        lines += ["", "; ".join(f"{label}: {found}" for label, found in packages.items())]
    return lines


def timed(record: dict[str, Any]) -> str:
    """Say how a case was timed."""
    return "processor time of 1 thread" if record["cpu_time"] else f"{record['threads']} threads"


def main() -> None:
    """Run the chosen cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peers", nargs="+", default=[""], metavar="WORD", help="only peers so named")
    parser.add_argument("--cpu-time", action="store_true", help="a busy machine: one thread, its processor time")
    parser.add_argument("--tiny", action="store_true", help="a toy model, to see that everything runs; keeps no result")
    chosen = parser.parse_args()
    timing = Timing(1 if chosen.cpu_time else chosen.threads, chosen.cpu_time)
    file = RESULTS / "peers.json"
    records = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    for name in chosen.only:
        case = CASES[name]
        case = replace(case, peers=tuple(p for p in case.peers if any(word in p.name for word in chosen.peers)))
        if chosen.tiny:
            case = replace(case, shape="tiny", lengths="tiny")
        record = measure_case(name, case, chosen.steps, chosen.warm, chosen.rounds, timing)
        records[name] = record
        if not chosen.tiny:
            write(records)
    if chosen.tiny:
        print("\n".join(tables({name: records[name] for name in chosen.only})))


if __name__ == "__main__":
    main()
