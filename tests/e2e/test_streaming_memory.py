"""Two gigabytes of rows through a process that may hold half of that, and holds no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GIB = 1 << 30
PROCESS = '''
"""Read, shuffle, encode and pack every row of a file; then come back from a state."""
import json, sys, time
from transformers import PreTrainedTokenizerFast
from tokenizers import Tokenizer, models, pre_tokenizers

from danlu.core.records import Conversation
from danlu.data.config import DataConfig
from danlu.data.encode import EncodeContext, encode_conversations
from danlu.data.packing import pack_or_keep
from danlu.data.streaming.open_stream import Order, open_stream
from danlu.templates import resolve


class Stage:
    record, encode, arrange = Conversation, staticmethod(encode_conversations), staticmethod(pack_or_keep)


def high_water():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10


backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
template = resolve("default", tokenizer)
template.prepare_tokenizer(tokenizer)
config = DataConfig(dataset=sys.argv[1], streaming=True, template="default", packing=True, cutoff_len=512)
context = EncodeContext(tokenizer, template, config)
began = time.monotonic()
stream, _ = open_stream(config, Stage, context, Order(1, 1))
told = {"estimate": len(stream), "open": time.monotonic() - began}
tokens = checked = 0
while stream.epoch < 1:
    tokens += sum(len(stream[one].input_ids) for one in stream.batch(8))
    if not checked and stream.epoch > 0.9:
        checked, state = stream.position, stream.state()
        expected = stream[stream.position].input_ids.tolist()
told |= {"examples": stream.position, "seconds": time.monotonic() - began, "read": stream.epoch}
again, _ = open_stream(config, Stage, context, Order(1, 1))
began = time.monotonic()
again.restore(state)
told |= {"restore": time.monotonic() - began, "same": again[checked].input_ids.tolist() == expected}
stream.finish()
print(json.dumps(told | {"high_water": high_water(), "torch": "torch" in sys.modules, "tokens": tokens,
                         "used": stream.ledger.total("used")}))
'''


def write_rows(path: Path, size: int) -> int:
    """Write `size` bytes of rows of 13 KB, 5 KB of them dialogue and the rest a column that no stage reads; count them.

    Tokenising is by far the slowest part, and not what is measured here.
    """
    words = ["".join(chr(97 + (n * k + k) % 26) for k in range(400)) for n in range(60)]
    count = written = 0
    with path.open("w", encoding="ascii") as file:
        while written < size:
            answer = " ".join(words[(count + k) % 60] for k in range(12))
            page = "".join(words[(count + k) % 60] for k in range(20))
            written += file.write(f'{{"instruction": "row {count}", "page": "{page}", "output": "{answer}"}}\n')
            count += 1
    return count


@pytest.mark.slow
def test_two_gigabytes_in_a_process_of_one(tmp_path: Path) -> None:
    """Resident memory stays below 1 GiB (16,384 rows of 5 KB in the buffer are 80 MiB of it); every row is used.

    Coming back at 90 % of the file takes seconds: the rows in the buffer are read again, the file is not.
    """
    path = tmp_path / "rows.jsonl"
    count = write_rows(path, 2 * GIB)
    script = tmp_path / "data_process.py"
    script.write_text(PROCESS, "utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DANLU_CACHE": str(tmp_path / "cache")}
    try:
        done = subprocess.run([sys.executable, str(script), str(path)], env=environment, text=True,
                              stdout=subprocess.PIPE, check=True)
    finally:
        path.unlink()
    told: dict[str, Any] = json.loads(done.stdout)
    print(told)
    assert not told["torch"]
    assert told["high_water"] < GIB
    assert told["used"] == count and told["read"] == 1
    assert abs(told["estimate"] / told["examples"] - 1) < 0.02
    assert told["same"] and told["restore"] < told["seconds"] / 4
