"""What a person would notice if it changed: how each template masks a dialogue, and what danlu says of itself.

`make golden` rewrites the files; the commit says in a sentence why.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest

from danlu.cli.main import main
from danlu.core.records import Conversation, Message, Origin
from danlu.templates import TEMPLATES, EncodeOptions
from tests.tiny import tiny_tokenizer

TALK = Conversation((
    Message("system", "Be brief."), Message("user", "天空是什么颜色?"), Message("assistant", "蓝色。"),
    Message("user", "And the sun?"), Message("assistant", "Warm.")), Origin("golden", 1))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare text with a golden file, or write the file under `--golden-update`."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).with_name(name)
        if request.config.getoption("--golden-update"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{name} differs: run `make golden` if that is meant"

    return check


def masked_lines() -> Iterator[str]:
    """Yield one line a template: its text, trained tokens between ⟦ and ⟧."""
    tokenizer = tiny_tokenizer()
    for name in TEMPLATES:
        row = TEMPLATES[name].encode_batch([TALK], tokenizer, EncodeOptions())[0]
        ids, trained = row.input_ids.tolist(), row.trained.tolist()
        runs = groupby(range(len(ids)), key=trained.__getitem__)
        texts = ((counts, tokenizer.decode([ids[i] for i in places])) for counts, places in runs)
        shown = "".join(f"⟦{text}⟧" if counts else text for counts, text in texts)
        yield f"{name}: {shown}\n".replace("\n", "↵")[:-1] + "\n"


def test_templates(golden: Callable[[str, str], None]) -> None:
    golden("templates.txt", "".join(masked_lines()))


def test_usage(golden: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    golden("usage.txt", capsys.readouterr().out)
