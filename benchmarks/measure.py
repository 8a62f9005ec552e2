"""Run one training as a user would, in a process of its own, and measure it from outside: steps, start-up, memory.

Both danlu and its peers train on the same `Task`. danlu is the command `danlu train`; the ends of its steps are the
moments at which its log lines arrive. Peers note the ends of their steps themselves (benchmarks/peers/clock.py).

Where other work shares the machine, `Timing(threads=1, cpu_time=True)` counts the processor time of one thread, which
that work hardly changes, instead of the time on the wall.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from benchmarks.workload import ANSWER_TOKENS, GROUP, RANKED, SAMPLED, Workload

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / ".bench"
RESULTS = ROOT / "benchmarks/results"
KINDS = {"pt": "prose", "sft": "chat", "rm": "pairs", "dpo": "pairs", "kto": "verdicts", "ppo": "prompts",
         "grpo": "prompts"}
"""The data set of each stage; a stage that is not here is not measured."""
PEERS_KINDS = {"ranked": "ranked_pairs"}
STEP = re.compile(r"^step (\d+)/\d+ ")
METHODS: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full"}, "lora": {"finetuning_type": "lora"},
    "qlora": {"finetuning_type": "lora", "quantization_bit": 4}}


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained. A step is `batch` x `accumulation` rows; the first `warm` steps are not measured."""

    stage: str
    method: str
    steps: int
    warm: int
    batch: int = 8
    accumulation: int = 2
    learning_rate: float = 1e-4
    lora_rank: int = 8
    kind: str = ""

    @property
    def data(self) -> str:
        """The data set of danlu's side."""
        return self.kind or KINDS[self.stage]

    @property
    def peers_data(self) -> str:
        """The data set of its peers, who know no ranked answers: all pairs of them."""
        return PEERS_KINDS.get(self.data, self.data)

    @property
    def rows(self) -> int:
        """Rows that the run reads."""
        return self.steps * self.batch * self.accumulation

    def tokens(self, work: Workload, first: int) -> int:
        """Return the real tokens of all steps after the first ones; where answers are sampled, theirs alone."""
        size = self.batch * self.accumulation
        if self.stage in SAMPLED:
            return ANSWER_TOKENS * SAMPLED[self.stage] * size * (self.steps - first)
        return work.tokens(self.data, first * size, self.steps * size)


@dataclass(frozen=True, slots=True)
class Timing:
    """With how many threads, and by which clock."""

    threads: int
    cpu_time: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Times in seconds, memory in MiB; `tokens_per_second` counts real tokens, never padding."""

    tokens_per_second: float
    step_seconds: float
    first_step: float
    peak_memory: float
    losses: list[float]
    grad_norms: list[float]
    versions: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def environment(threads: int) -> dict[str, str]:
    """Return the environment of every run: the same threads, no network, output at once."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1", "DANLU_CACHE": str(BENCH / "cache"), "CUDA_VISIBLE_DEVICES": "",
        "WANDB_DISABLED": "true"}


def run_danlu(task: Task, work: Workload, timing: Timing, settings: dict[str, Any] | None = None, *,
              keeps_cache: bool = False) -> Measured:
    """Run `danlu train`; `settings` are more keys of its configuration.

    Without `keeps_cache` it starts with an empty cache, where no earlier run's reference log-probabilities serve it.
    """
    output = fresh(BENCH / "runs" / "danlu")
    if not keeps_cache:
        fresh(BENCH / "cache")
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(danlu_config(task, work, output) | (settings or {})), encoding="utf-8")
    began = time.time()
    run = subprocess.Popen([sys.executable, "-m", "danlu.cli.main", "train", str(config)], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, env=environment(timing.threads))
    assert run.stdout is not None
    lines: list[str] = []
    ends: list[float] = []
    wall: list[float] = []
    peak = 0.0
    for line in run.stdout:
        lines.append(line)
        if STEP.match(line):
            wall.append(time.time())
            peak = resident_peak(run.pid)
            ends.append(processor_seconds(run.pid) if timing.cpu_time else wall[-1])
    if run.wait():
        raise RuntimeError(f"danlu train {config} failed:\n{''.join(lines[-20:])}")
    log = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    log = [row for row in log if "loss" in row]
    return Measured(
        tokens_per_second=task.tokens(work, task.warm) / (ends[-1] - ends[task.warm - 1]),
        step_seconds=step_seconds(ends, task.warm), first_step=wall[0] - began, peak_memory=peak,
        losses=[row["loss"] for row in log], grad_norms=[row["grad_norm"] for row in log],
        versions={name: version(name) for name in ("danlu", "torch", "transformers", "peft")})


def danlu_config(task: Task, work: Workload, output: Path) -> dict[str, Any]:
    """Return the configuration of danlu's side."""
    return {
        "model_name_or_path": str(work.model(scores=task.stage == "rm")), "stage": task.stage, "do_train": True,
        "dataset": task.data, "dataset_dir": str(work.folder), "output_dir": str(output),
        "overwrite_output_dir": True, "max_steps": task.steps, "per_device_train_batch_size": task.batch,
        "gradient_accumulation_steps": task.accumulation, "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "logging_steps": 1, "save_strategy": "no",
        "disable_shuffling": True, "cutoff_len": 1024, "packing": False, **METHODS[task.method],
        **({} if task.method == "full" else {
            "lora_rank": task.lora_rank, "lora_alpha": 2 * task.lora_rank, "lora_target": "all"}),
        **({"num_generations": GROUP} if task.stage == "grpo" else {}),
        **({"reward_model": str(work.model(scores=True)), "reward_model_type": "full", "temperature": 1.0, "top_p": 1.0,
            "top_k": 0, "max_new_tokens": ANSWER_TOKENS} if task.stage in SAMPLED else {})}


def run_peer(python: Path, script: str, task: Task, work: Workload, timing: Timing,
             settings: dict[str, Any] | None = None) -> Measured:
    """Run a peer's adapter in the peer's environment. A peer that trains and then fails to save is measured."""
    output = fresh(BENCH / "runs" / "peer")
    asked, answered = output.with_suffix(".json"), output / "answered.json"
    output.mkdir(parents=True)
    pairs = RANKED * (RANKED - 1) // 2 if task.kind == "ranked" else 1
    asked.write_text(json.dumps({
        **asdict(task), "batch": task.batch * pairs, "kind": task.peers_data, "group": SAMPLED.get(task.stage, 1),
        "answer_tokens": ANSWER_TOKENS, "model": str(work.model(scores=task.stage == "rm")),
        "scoring": str(work.model(scores=True)), "data": str(work.folder),
        "output": str(output / "out"), "settings": settings or {}}), encoding="utf-8")
    began = time.time()
    log = output / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        run = subprocess.Popen([str(python), str(ROOT / "benchmarks/peers" / script), str(asked), str(answered)],
                               stdout=file, stderr=subprocess.STDOUT, env=environment(timing.threads))
        _, status, usage = os.wait4(run.pid, 0)
    if not answered.is_file():
        raise RuntimeError(f"{script} failed:\n{log.read_text('utf-8')[-3000:]}")
    told = json.loads(answered.read_text("utf-8"))
    ends, tokens = told["cpu_ends" if timing.cpu_time else "ends"], told["tokens"]
    is_told = tokens and tokens[-1] and task.stage not in SAMPLED  # where prompts are counted too
    own = tokens[-1] - tokens[task.warm - 1] if is_told else 0
    return Measured(
        tokens_per_second=(own or task.tokens(work, task.warm)) / (ends[-1] - ends[task.warm - 1]),
        step_seconds=step_seconds(ends, task.warm), first_step=told["ends"][0] - began,
        peak_memory=usage.ru_maxrss / 1024, losses=told["losses"], grad_norms=told["grad_norms"],
        versions=told["versions"], problem="failed after training" if status else "")


def processor_seconds(pid: int) -> float:
    """Return the processor time that a running process has used (Linux)."""
    words = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def resident_peak(pid: int) -> float:
    """Return the most memory that a running process has held, in MiB (Linux); 0 once it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


def step_seconds(ends: list[float], warm: int) -> float:
    """Return the median time of a step after the first ones."""
    return statistics.median(b - a for a, b in zip(ends[warm - 1:], ends[warm:], strict=False))


def fresh(folder: Path) -> Path:
    """Return the path with nothing there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def keep_results(name: str, record: Any, lines: list[str]) -> None:
    """Write a record as JSON and its tables as Markdown under RESULTS."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def replace_between(path: Path, name: str, lines: list[str]) -> None:
    """Put lines between the marks `<!-- name -->` and `<!-- end of name -->` of a page."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = path.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    path.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: processor, cores, whether bf16 products run in hardware, load."""
    text = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").is_file() else ""
    name = re.search(r"model name\s*: (.*)", text)
    return {"processor": name[1] if name else "unknown", "cores": os.cpu_count(),
            "bf16 in hardware": "avx512_bf16" in text or "amx_bf16" in text,
            "load": round(os.getloadavg()[0], 1)}
