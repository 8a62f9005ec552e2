"""Task `pairs`: a reward model against preferences: accuracy, margin, calibration, and the rewards of every row."""

from pathlib import Path

import torch
from torch import nn

from danlu.core.errors import UserError
from danlu.core.records import Preference
from danlu.data.dataset import build_dataset
from danlu.data.encode import EncodeContext
from danlu.evaluation.base import TASKS, EvalJob
from danlu.evaluation.exact import PREDICTIONS
from danlu.evaluation.judged import judge, measure, write_judged
from danlu.generation.load import with_base_of_adapter
from danlu.models.architecture import load_config
from danlu.models.config import ModelConfig
from danlu.models.load import load_model
from danlu.models.packed_lm import PackedLM
from danlu.models.precision import resolve_inference_dtype
from danlu.models.quantization import is_quantized
from danlu.models.reward_lm import VALUE_HEAD, RewardLM, load_value_head
from danlu.models.source import check_model_source, local_folder
from danlu.models.tokenizer import adapter_paths, load_tokenizer
from danlu.rewards.base import RewardContext
from danlu.rewards.full import LastTokenScore
from danlu.rewards.sequence_model import is_classifier, load_classifier
from danlu.stages.rm import RM
from danlu.templates import resolve


@TASKS.register("pairs")
def run_pairs(job: EvalJob) -> dict[str, float]:
    """Return accuracy, margin, ece, mean rewards and the number of prompts; several sets also as accuracy_<set>, ..."""
    context, device = scoring_context(job), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_scorer(job, context, device)
    found = {}
    for name, records in job.each_set(Preference).items():
        dataset = build_dataset(records, RM, context)
        found[name] = list(judge(network, dataset, size=job.batch_size, device=device))
    everything = [one for part in found.values() for one in part]
    results = measure(everything) | {"prompts": float(len(everything))}
    if len(found) > 1:
        results |= {f"{what}_{name}": value for name, part in found.items() for what, value in measure(part).items()}
    if job.folder is not None:
        write_judged(job.folder, PREDICTIONS, everything)
    return results


def scoring_context(job: EvalJob) -> EncodeContext:
    tokenizer = load_tokenizer(with_base_of_adapter(job.model))
    template = resolve(job.data.template, tokenizer, tool_format=job.data.tool_format)
    template.prepare_tokenizer(tokenizer)
    return EncodeContext(tokenizer, template, job.data)


def load_scorer(job: EvalJob, context: EncodeContext, device: torch.device) -> nn.Module:
    """Load what scores: a model or adapter with its value head, or a sequence classifier of one label.

    Raises UserError for a model that is neither.
    """
    source = with_base_of_adapter(job.model)
    dtype = resolve_inference_dtype(source.infer_dtype, device)
    config = load_config(check_model_source(source.model_name_or_path, cache_dir=source.cache_dir), source)
    if is_classifier(config) and not adapter_paths(source):
        given = RewardContext(context.tokenizer, context.template, nn.Identity(), source, job.quantization, job.adapter,
                              compute_dtype=dtype)
        try:
            model = load_classifier(str(source.model_name_or_path), given, job.quantization.quantization_bit)
        except UserError as error:
            raise type(error)(error.what, where="model_name_or_path", fix=error.fix) from error
        head = getattr(model, "score", None)
        if model.config.num_labels != 1 or not isinstance(head, nn.Module):
            what = f"a {type(model).__name__} of {model.config.num_labels} labels is no reward model"
            raise UserError(what, where="model_name_or_path", fix="name a classifier with one score of the last token")
        return _placed(LastTokenScore(model, head), model, device)
    folder = _head_folder(source)
    network = load_model(source, job.quantization, job.adapter, tokenizer=context.tokenizer, trainable=False,
                         compute_dtype=dtype, max_length=job.data.cutoff_len)
    scorer = RewardLM(PackedLM(network))
    load_value_head(scorer, folder)
    return _placed(scorer, network, device)


def _placed(scorer: nn.Module, model: nn.Module, device: torch.device) -> nn.Module:
    """Return the scorer on its device; packed weights are there already."""
    if not is_quantized(model):
        return scorer.to(device).eval()
    if isinstance(scorer, RewardLM):
        scorer.value_head.to(device)
    return scorer.eval()


def _head_folder(source: ModelConfig) -> Path:
    name = (adapter_paths(source) or (str(source.model_name_or_path),))[-1]
    folder = local_folder(name)
    if folder is None or not (folder / VALUE_HEAD).is_file():
        raise UserError(f"{name} is no reward model: it holds no {VALUE_HEAD} and is no sequence classifier",
                        where="task", fix="name the folder that stage rm wrote, or its export")
    return folder
