"""`danlu env`: versions, devices, cores and memory, for bug reports. Prints no path and no name of the machine."""

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from danlu import __version__

REQUIRED = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "tokenizers", "pydantic",
            "PyYAML", "jinja2", "rich", "numpy", "sentencepiece")
OPTIONAL = ("bitsandbytes", "deepspeed", "vllm", "fastapi", "tensorboard", "wandb", "swanlab", "mlflow", "trackio",
            "jieba", "nltk", "rouge-chinese", "flash-attn", "matplotlib")
SETTINGS = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WORLD_SIZE")


def main(argv: Sequence[str]) -> int:
    """Print one `name: value` line a fact."""
    if any(word in ("-h", "--help") for word in argv):
        print("usage: danlu env")
        return 0
    facts = [("danlu", __version__), ("python", platform.python_version()),
             ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
             *[(name, _version(name)) for name in REQUIRED],
             *[(name, _version(name)) for name in OPTIONAL if _version(name) != "absent"],
             ("not installed", ", ".join(name for name in OPTIONAL if _version(name) == "absent") or "none"),
             ("cores", str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count())),
             ("memory", _memory()), *_devices(),
             *[(name, os.environ[name]) for name in SETTINGS if name in os.environ]]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name.ljust(width)}  {value}")
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _memory() -> str:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return "unknown"
    page = os.sysconf("SC_PAGE_SIZE")
    return (f"{os.sysconf('SC_PHYS_PAGES') * page / 2**30:.1f} GiB, "
            f"{os.sysconf('SC_AVPHYS_PAGES') * page / 2**30:.1f} GiB free")


def _devices() -> list[tuple[str, str]]:
    """Return what torch sees; a broken installation of it is part of the report."""
    try:
        import torch
    except ImportError as error:
        return [("device", f"torch cannot be imported: {error}")]
    if not torch.cuda.is_available():
        return [("device", "cpu"), ("threads", str(torch.get_num_threads()))]
    found = [("cuda", str(torch.version.cuda))]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append((f"device {index}", f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB, "
                                         f"capability {facts.major}.{facts.minor}"))
    return found
