"""Rules that join several keys, and what is filled in when a key is not given."""

from typing import Any

import pytest

from danlu.core.errors import ConfigError
from danlu.run_config import RunConfig, load_run_config

WHOLE = {"model_name_or_path": "m", "output_dir": "o", "dataset": "a"}


def config(verb: str = "train", **values: Any) -> RunConfig:
    """Load a configuration from a command line with what every run needs."""
    given = {**WHOLE, **values}
    return load_run_config(None, [f"{key}={value}" for key, value in given.items() if value is not None], verb)


@pytest.mark.parametrize(("values", "part"), [
    ({"bf16": "true", "fp16": "true"}, "bf16: true and fp16: true exclude each other"),
    ({"model_name_or_path": None}, '"model_name_or_path" is missing'),
    ({"output_dir": None}, '"output_dir" is missing'),
    ({"dataset": None}, '"dataset" is missing'),
    ({"do_train": "false"}, '"do_train" is false, and neither do_eval nor do_predict is true'),
    ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type greedy follows evaluations"),
    ({"pissa_init": "true", "quantization_bit": "8"}, '"pissa_init" takes singular vectors of the base weights'),
    ({"train_file": "f"}, "dataset and train_file exclude each other"),
    ({"val_size": "1.5"}, "val_size is a share below 1 or a whole number"),
    ({"val_size": "0.1", "eval_dataset": "b"}, "val_size and an evaluation set exclude each other"),
    ({"do_train": "true", "do_eval": "true"}, '"do_eval" has no data to evaluate'),
    ({"eval_strategy": "steps"}, "there is no data to evaluate"),
    ({"interleave_probs": "1.0"}, "interleave_probs needs mix_strategy"),
    ({"interleave_probs": "1.0", "dataset": "a,b", "mix_strategy": "interleave_under"}, "1 values for 2 sets"),
    ({"finetuning_type": "full", "quantization_bit": "4"}, "does not go with finetuning_type full"),
    ({"upcast_layernorm": "true", "pure_bf16": "true"}, "does not go with pure_bf16"),
    ({"neat_packing": "true", "packing": "false"}, "neat_packing: true means packing: true"),
    ({"mask_history": "true", "train_on_prompt": "true"}, "exclude each other"),
    ({"pissa_init": "true", "use_dora": "true"}, "exclude each other"),
    ({"finetuning_type": "freeze", "freeze_trainable_layers": "0"}, "would train no layer"),
    ({"warmup_steps": "1.5"}, "warmup_steps is a share below 1 or a whole number"),
    ({"load_best_model_at_end": "true"}, "needs evaluations"),
    ({"load_best_model_at_end": "true", "eval_strategy": "epoch", "val_size": "0.1"}, "save_strategy is steps"),
    ({"early_stopping_steps": "2"}, "needs evaluations"),
    ({"gradient_checkpointing": "true", "disable_gradient_checkpointing": "true"}, "exclude each other"),
])
def test_contradictions(values: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**values)
    assert part in str(caught.value), str(caught.value)


def test_contradictions_of_several_owners_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config(bf16="true", fp16="true", val_size="1.5", pissa_init="true", use_dora="true")
    assert len(str(caught.value).splitlines()) == 3
    assert str(caught.value).count("command line: ") == 3


def test_training_is_assumed_and_said() -> None:
    plain = config()
    assert plain.do_train and any("do_train: true" in text for text in plain.notices)
    assert not config(do_eval="true").do_train


def test_evaluation_of_the_training_set() -> None:
    """Without do_train and without an evaluation set, do_eval and do_predict evaluate `dataset` itself."""
    evaluated = config(do_eval="true", dataset="a,b")
    assert evaluated.data.eval_dataset == ("a", "b")
    assert any("evaluating dataset itself" in text for text in evaluated.notices)
    assert config(do_predict="true", dataset=None, train_file="f").data.eval_file == "f"
    assert config(do_eval="true", eval_dataset="c").data.eval_dataset == ("c",)


def test_alpha_is_twice_the_rank_unless_given() -> None:
    assert config(lora_rank=12).adapter.alpha == 24
    assert config(lora_rank=12, lora_alpha=5).adapter.alpha == 5


def test_neat_packing_implies_packing() -> None:
    assert config().data.packing is None
    assert config(neat_packing="true").data.packing is True


def test_given_repeats_the_run() -> None:
    """What is stored as training_args.yaml holds the given keys only, and resolves to the same Configs."""
    first = config(dataset="a,b", lr_scheduler_kwargs='{"min_lr": 0.1}', learning_rate="1e-4", plot_loss="true",
                   template=None, bf16="true")
    again = load_run_config(None, [f"{key}={_text(value)}" for key, value in first.given().items()], "train")
    assert again.flat() == first.flat()
    assert set(first.given()) == {"model_name_or_path", "output_dir", "dataset", "lr_scheduler_kwargs",
                                  "learning_rate", "plot_loss", "bf16"}


def _text(value: Any) -> str:
    import json

    return json.dumps(value) if isinstance(value, (dict, bool)) else str(value)


def test_origins_of_every_key() -> None:
    loaded = config(lora_rank=4)
    assert loaded.origins["lora_rank"] == "command line"
    assert loaded.origins["lora_alpha"] == "default"
    assert set(loaded.flat()) == set(loaded.origins)


def test_chat_and_export_need_no_data() -> None:
    for verb in ("chat", "export"):
        loaded = load_run_config(None, ["model_name_or_path=m"], verb)
        assert loaded.verb == verb and not loaded.do_train


def test_gradient_checkpointing_is_for_accelerators_unless_said() -> None:
    """Unset: on with a GPU, off on a CPU; gradient_checkpointing and disable_gradient_checkpointing decide."""
    cases = {"": (True, False), "gradient_checkpointing=true": (True, True),
             "gradient_checkpointing=false": (False, False), "disable_gradient_checkpointing=true": (False, False)}
    for words, expected in cases.items():
        key, _, value = words.partition("=")
        model = config(**({key: value} if key else {})).model
        assert (model.wants_checkpointing(True), model.wants_checkpointing(False)) == expected, words


def test_keys_of_other_engines_at_their_defaults_pass_with_a_notice() -> None:
    """A file written out in full by another tool names switches it never turned; other values are refused."""
    foreign: dict[str, Any] = {"freeze_vision_tower": True, "image_max_pixels": 589824, "galore_rank": "16",
                               "galore_scale": 2, "use_galore": False, "apollo_proj": "random", "video_fps": 2.0,
                               "oft_rank": 0}
    told = " ".join(config(**foreign).notices)
    assert all(name in told for name in foreign), told
    for changed in ({"image_max_pixels": 1024}, {"galore_rank": 8}, {"use_galore": True}, {"apollo_proj": "svd"},
                    {"freeze_language_model": True}):
        with pytest.raises(ConfigError, match=next(iter(changed))):
            config(**changed)


def test_keys_of_ray_runs_pass_with_a_notice() -> None:
    keys = {"ray_run_name": "one", "ray_storage_path": "./saves", "ray_storage_filesystem": "s3",
            "resources_per_worker": "{'GPU': 1}", "placement_strategy": "PACK"}
    told = " ".join(config(**keys).notices)
    assert all(name in told for name in keys), told
