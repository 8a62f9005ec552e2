"""What an export wrote and proved: said aloud, and kept beside the weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from danlu.core.console import say, warn
from danlu.core.errors import UserError
from danlu.export.certificate import LogitCheck, TemplateCheck
from danlu.export.folder import REPORT


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written and which checks it passed.

    kind      causal-lm, or sequence-classification for a reward model
    constant  what a reward of danlu has more than the exported model's: the head's constant, where the class has none
    """

    folder: Path
    base: str
    adapters: tuple[str, ...]
    dtype: str
    files: tuple[str, ...]
    logits: tuple[LogitCheck, ...]
    template: TemplateCheck | None
    modelfile: bool
    kind: str = "causal-lm"
    constant: float = 0.0


def refuse_or_say(report: ExportReport) -> None:
    """Say what was proven. Raises UserError when float32 logits differ: such a model is not the trained one."""
    for check in report.logits:
        line = f"{check.what}: {check.unit} differ by at most {check.difference:.2e} (allowed {check.allowed:.2e})"
        if check.passed:
            say(line)
        elif report.dtype == "float32":
            raise UserError(f"the exported model is not the trained one: {line}", where=report.base,
                            fix="report this with the adapter_config.json; nothing was written")
        else:
            warn(f"{line}; {report.dtype} rounds the merged weights, infer_dtype: float32 keeps them exact")
    if report.template is None:
        say("no chat template: neither the tokenizer nor `template` names one")
        return
    if not report.modelfile and report.kind == "causal-lm":
        say("no Modelfile: the chat template has parts that Ollama's template language cannot express")
    if report.template.passed:
        say(f"chat template: {report.template.compared} dialogues have the same ids in danlu and in plain transformers")
    else:
        warn(f"chat template: {len(report.template.differing)} of {report.template.compared} dialogues have other ids "
             f"in plain transformers than in danlu, which splits words at turns; see {REPORT}")


def write_report(report: ExportReport, folder: Path) -> None:
    """Write export_report.json."""
    content = asdict(report) | {"folder": str(report.folder)}
    content["logits"] = [asdict(check) | {"passed": check.passed} for check in report.logits]
    if report.template is not None:
        content["template"] = asdict(report.template) | {"passed": report.template.passed}
    (folder / REPORT).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
