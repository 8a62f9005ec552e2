"""Fixtures every test may use: tiny models, the shared real data, and one thread each so that two cores suffice."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real public data; skips with a counted reason when it is absent."""
    folder = Path(os.environ.get("DANLU_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        if os.environ.get("DANLU_REQUIRE_SHARED") == "1":
            pytest.fail(f"DANLU_REQUIRE_SHARED=1 but {folder}/data is absent")
        pytest.skip("shared data absent (set DANLU_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a ChatML chat template, saved as a user would have it."""
    from tests.tiny import CHATML, save_tiny

    return save_tiny(tmp_path_factory.mktemp("base"), "llama", CHATML)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count skipped tests by reason, so that a silent hole in the proof is seen."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count} test(s): {reason}")
