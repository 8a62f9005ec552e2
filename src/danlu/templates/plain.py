"""Templates in plain text, without control tokens of their own: any tokenizer can write them."""

from danlu.templates.named import declare

_CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

declare(
    "default",
    prefix="",
    system="System: {content}{eos}\n",
    user="Human: {content}{eos}\n",
    generation="Assistant:",
    assistant="{content}{eos}\n",
    tool_format="default",
)
declare(
    "default_2023",
    system="{content}\n",
    default_system=_CURIOUS_USER,
    user="Human: {content}\n",
    generation="Assistant: ",
    assistant="{content}{eos}\n",
)
declare("empty", prefix="", user="{content}")
declare("fewshot", prefix="", user="{content}", assistant="{content}\n\n")
declare(
    "alpaca",
    prefix="",
    system="{content}\n\n",
    default_system="Below is an instruction that describes a task. "
                   "Write a response that appropriately completes the request.",
    user="### Instruction:\n{content}\n\n",
    generation="### Response:\n",
    assistant="{content}{eos}\n\n",
)
declare(
    "vicuna",
    system="{content} ",
    default_system=_CURIOUS_USER,
    user="USER: {content} ",
    generation="ASSISTANT:",
    assistant=" {content}{eos}",
)
declare(
    "solar",
    prefix="",
    system="### System:\n{content}\n\n",
    user="### User:\n{content}\n\n",
    generation="### Assistant:\n",
    assistant="{content}{eos}\n\n",
)
declare(
    "falcon",
    prefix="",
    system="{content}\n",
    user="User: {content}\n",
    generation="Falcon:",
    assistant="{content}{eos}\n",
)
declare(
    "openchat",
    user="GPT4 Correct User: {content}{eos}",
    generation="GPT4 Correct Assistant:",
    assistant=" {content}{eos}",
)
declare(
    "xuanyuan",
    prefix="",
    system="{content} ",
    user="Human: {content} ",
    generation="Assistant:",
)
