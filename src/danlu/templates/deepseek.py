"""DeepSeek: plain-text roles (LLM and V2), role tokens (V3, R1), an instruction format (Coder)."""

from danlu.templates.named import declare
from danlu.templates.thinking import Thinking

_CODER = (
    "You are an AI programming assistant, utilizing the DeepSeek Coder model, developed by DeepSeek Company, "
    "and you only answer questions related to computer science. For politically sensitive questions, security and "
    "privacy issues, and other non-computer science questions, you will refuse to answer\n"
)

declare(
    "deepseek",
    system="{content}\n\n",
    user="User: {content}\n\n",
    generation="Assistant:",
    assistant=" {content}{eos}",
)
declare("deepseek3", user="<｜User｜>{content}", generation="<｜Assistant｜>")
declare(
    "deepseekr1",
    user="<｜User｜>{content}",
    generation="<｜Assistant｜>",
    thinking=Thinking(is_managed=True),
)
declare(
    "deepseekcoder",
    default_system=_CODER,
    user="### Instruction:\n{content}\n",
    generation="### Response:\n",
    assistant="{content}\n<|EOT|>\n",
    stop=("<|EOT|>",),
)
