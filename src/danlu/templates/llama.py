"""Llama: [INST] rounds (2), header tokens (3 and 4)."""

from danlu.templates.named import declare

_LLAMA2 = {
    "prefix": "",
    "system": "<<SYS>>\n{content}\n<</SYS>>\n\n",
    "system_in_user": True,
    "user": "{bos}[INST] {content} [/INST]",
    "assistant": " {content} {eos}",
    "is_plain": True,
}
_LLAMA3 = {
    "system": "<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
    "user": "<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
    "observation": "<|start_header_id|>ipython<|end_header_id|>\n\n{content}<|eot_id|>",
    "generation": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "assistant": "{content}<|eot_id|>",
    "stop": ("<|eot_id|>", "<|eom_id|>"),
    "tool_format": "llama3",
}
_SKYWORK = (
    "You are Skywork-o1, a thinking model developed by Skywork AI, specializing in solving complex problems involving "
    "mathematics, coding, and logical reasoning through deep thought. When faced with a user's request, you first "
    "engage in a lengthy and in-depth thinking process to explore possible solutions to the problem. After completing "
    "your thoughts, you then provide a detailed explanation of the solution process in your response."
)

declare("llama2", **_LLAMA2)
declare("llama2_zh", **_LLAMA2, default_system="You are a helpful assistant. 你是一个乐于助人的助手。")
declare("llama3", **_LLAMA3)
declare("skywork_o1", **{**_LLAMA3, "prefix": ""}, default_system=_SKYWORK)
declare(
    "llama4",
    system="<|header_start|>system<|header_end|>\n\n{content}<|eot|>",
    user="<|header_start|>user<|header_end|>\n\n{content}<|eot|>",
    observation="<|header_start|>ipython<|header_end|>\n\n{content}<|eot|>",
    generation="<|header_start|>assistant<|header_end|>\n\n",
    assistant="{content}<|eot|>",
    stop=("<|eot|>", "<|eom|>"),
    tool_format="llama3",
)
