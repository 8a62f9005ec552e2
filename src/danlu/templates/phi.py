"""Phi: role tokens and <|end|> (3), ChatML with a separator token (4). StarChat writes the same roles."""

from danlu.templates.named import declare

_ROLES = {
    "prefix": "",
    "system": "<|system|>\n{content}<|end|>\n",
    "user": "<|user|>\n{content}<|end|>\n",
    "generation": "<|assistant|>\n",
    "assistant": "{content}<|end|>\n",
    "stop": ("<|end|>",),
}

declare(("phi", "phi3"), **_ROLES)
declare("phi_small", **{**_ROLES, "prefix": "{bos}"})
declare("starchat", **_ROLES)
declare(
    "phi4",
    prefix="",
    system="<|im_start|>system<|im_sep|>{content}<|im_end|>",
    user="<|im_start|>user<|im_sep|>{content}<|im_end|>",
    generation="<|im_start|>assistant<|im_sep|>",
    assistant="{content}<|im_end|>",
    stop=("<|im_end|>",),
)
declare(
    "phi4_mini",
    prefix="",
    system="<|system|>{content}<|end|>",
    user="<|user|>{content}<|end|>",
    generation="<|assistant|>",
    assistant="{content}<|end|>",
    stop=("<|end|>",),
)
