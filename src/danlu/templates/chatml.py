"""ChatML: <|im_start|>role, newline, content, <|im_end|>. Qwen's first formats are the same."""

from danlu.templates.named import declare

CHATML = {
    "prefix": "",
    "system": "<|im_start|>system\n{content}<|im_end|>\n",
    "user": "<|im_start|>user\n{content}<|im_end|>\n",
    "observation": "<|im_start|>tool\n{content}<|im_end|>\n",
    "generation": "<|im_start|>assistant\n",
    "assistant": "{content}<|im_end|>\n",
    "stop": ("<|im_end|>",),
}

declare("chatml", **CHATML)
