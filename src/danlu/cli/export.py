"""`danlu export`: merge adapters into the base and write one model. Parses and prints; no logic of its own."""

import sys
from collections.abc import Sequence

from danlu.cli.key_help import key_table
from danlu.cli.run_keys import read_run_config

USAGE = """usage: danlu export [FILE.yaml] [key=value ...] [--key value ...]

Write base plus adapters as one model that every tool reads, with tokenizer, chat template and stop tokens.
    danlu export model_name_or_path=base adapter_name_or_path=runs/sft export_dir=merged
    danlu export model_name_or_path=runs/sft export_dir=merged          (an adapter knows its base)
    danlu export --model_name_or_path base --checkpoint_dir runs/sft --output_dir merged --template default
    danlu export model_name_or_path=runs/rm export_dir=judge            (a reward model becomes a sequence classifier)
The result is compared with base plus adapter before it takes its name; export_report.json holds the numbers."""
OWNERS = ("export", "model")


def main(argv: Sequence[str]) -> int:
    """Check the keys without torch, then merge."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE, key_table(OWNERS), sep="\n", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    config = read_run_config(argv, "export")
    from danlu.export.merge import export_model

    report = export_model(
        config.model, config.quantization, config.adapter, config.export, template=config.data.template,
        tool_format=config.data.tool_format)
    print(f"wrote {report.folder}")
    return 0
