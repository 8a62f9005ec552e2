"""Formats of the first Chinese assistants: a line for each role, eos behind each answer."""

from danlu.templates.named import declare

_AQUILA = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_YAYI = (
    "You are a helpful, respectful and honest assistant named YaYi developed by Beijing Wenge Technology Co.,Ltd. "
    "Always answer as helpfully as possible, while being safe.  Your answers should not include any harmful, "
    "unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your responses are socially "
    "unbiased and positive in nature.\n\nIf a question does not make any sense, or is not factually coherent, explain "
    "why instead of answering something not correct. If you don't know the answer to a question, please don't share "
    "false information."
)

declare(
    "aquila",
    prefix="",
    system="System: {content}###",
    default_system=_AQUILA,
    user="Human: {content}###",
    generation="Assistant:",
    assistant="{content}###{eos}",
)
declare(
    "atom",
    prefix="",
    system="System: {content}\n{eos}",
    user="{bos}Human: {content}\n{eos}",
    generation="{bos}Assistant:",
    assistant="{content}\n{eos}",
)
declare("belle", user="Human: {content}\n\n", generation="Belle: ", assistant="{content}{eos}\n\n")
declare("bluelm", prefix="", user="[|Human|]:{content}", generation="[|AI|]:")
declare("index", prefix="", system="<unk>{content}", user="reserved_0{content}", generation="reserved_1")
declare(
    "moss",
    prefix="",
    system="{content}\n",
    user="<|Human|>: {content}<eoh>\n",
    generation="<|MOSS|>:",
    assistant=" {content}<eom>\n",
    stop=("<eom>",),
)
declare("orion", user="Human: {content}\n\n", generation="Assistant: {eos}")
declare(("telechat", "telechat2"), prefix="", system="<_system>{content}<_end>", user="<_user>{content}",
        generation="<_bot>")
declare("xverse", prefix="", user="Human: {content}\n\n", generation="Assistant: ")
declare(
    "yayi",
    prefix="",
    system="<|System|>:\n{content}\n\n",
    default_system=_YAYI,
    user="<|Human|>:\n{content}\n\n",
    generation="<|YaYi|>:",
    assistant="{content}{eos}\n\n",
    stop=("<|End|>",),
)
declare("yuan", prefix="", user="{content}", generation="<sep>", assistant="{content}<eod>\n", stop=("<eod>",))
declare(("ziya", "ziya2"), prefix="", user="<human>:{content}\n", generation="<bot>:", assistant="{content}{eos}\n",
        is_plain=True)
