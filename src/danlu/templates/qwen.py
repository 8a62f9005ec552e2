"""Qwen: ChatML, tool answers inside a user turn, and from Qwen3 on a block of reasoning in the final answer."""

from danlu.templates.chatml import CHATML
from danlu.templates.named import declare
from danlu.templates.thinking import Thinking

_QWEN = {
    **CHATML,
    "observation": "<|im_start|>user\n{content}<|im_end|>\n",
    "result": "<tool_response>\n{content}\n</tool_response>",
    "tool_format": "qwen",
}

declare("qwen", **_QWEN, default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
declare("qwen1_5", **_QWEN, default_system="You are a helpful assistant.")
declare("qwen3", **_QWEN, thinking=Thinking(is_managed=True))
declare("qwen3_nothink", **_QWEN)
