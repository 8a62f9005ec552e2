"""Experiment trackers through accelerate: which ones, and how they start without key or network."""

import os
import socket
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from danlu.core.console import notice
from danlu.core.errors import CapabilityError
from danlu.engine.config import EngineConfig

# name in report_to -> what installs it
_INSTALL = {
    "tensorboard": 'pip install "danlu[track]"', "wandb": 'pip install "danlu[track]"',
    "swanlab": "pip install swanlab", "mlflow": "pip install mlflow", "trackio": "pip install trackio",
}


def chosen(config: EngineConfig) -> list[str]:
    """Return the trackers of `report_to` that are to run; refuse those that are not installed."""
    names = [name for name in config.report_to if name != "none"]
    if "all" in names:
        return [name for name in _INSTALL if find_spec(name) is not None]
    for name in names:
        if find_spec(name) is None:
            raise CapabilityError(f"{name} is not installed", where="report_to", fix=_INSTALL[name])
    return list(dict.fromkeys(names))


def settings(config: EngineConfig, names: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Return each tracker's start-up settings; those that lack a key stay on this machine, with a notice."""
    run_name = config.run_name or config.output_dir or str(folder)
    made: dict[str, dict[str, Any]] = {}
    if "wandb" in names:
        made["wandb"] = {"name": run_name, "dir": str(folder)} | _wandb_mode()
    if "swanlab" in names:
        made["swanlab"] = _swanlab(config, run_name)
    if "mlflow" in names:
        made["mlflow"] = {"run_name": run_name}
    if "trackio" in names:
        made["trackio"] = {"name": run_name}
    return made


def _wandb_mode() -> dict[str, str]:
    if os.environ.get("WANDB_MODE"):
        return {}
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host, port = server.hostname or "api.wandb.ai", server.port or (80 if server.scheme == "http" else 443)
    if not os.environ.get("WANDB_API_KEY") and not _in_netrc(host):
        reason = "no API key found"
    elif not _answers(host, port):
        reason = f"{host} does not answer"
    else:
        return {}
    notice(f"wandb: {reason}, the run is recorded offline; `wandb sync` sends it later")
    return {"mode": "offline"}


def _answers(host: str, port: int) -> bool:
    """Try to connect for three seconds; behind a proxy the answer is unknown and taken as yes."""
    if getproxies():
        return True
    try:
        with socket.create_connection((host, port), timeout=3):
            return True
    except OSError:
        return False


def _swanlab(config: EngineConfig, run_name: str) -> dict[str, Any]:
    mode = config.swanlab_mode
    if mode == "cloud" and not (config.swanlab_api_key or os.environ.get("SWANLAB_API_KEY")):
        notice("swanlab: no API key found, the run is recorded on this machine")
        mode = "local"
    made = {"experiment_name": config.swanlab_run_name or run_name, "mode": mode,
            "workspace": config.swanlab_workspace, "logdir": config.swanlab_logdir}
    return {name: value for name, value in made.items() if value is not None}


def _in_netrc(host: str) -> bool:
    try:
        return netrc().authenticators(host) is not None
    except (FileNotFoundError, NetrcParseError):
        return False
