"""InternLM: <|User|> and <|Bot|> (1), ChatML behind bos (2)."""

from danlu.templates.chatml import CHATML
from danlu.templates.named import declare

_SYSTEM = (
    "You are an AI assistant whose name is InternLM (书生·浦语).\n"
    "- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI Laboratory "
    "(上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the user "
    "such as English and 中文."
)

declare(
    ("intern", "internlm"),
    system="<|System|>:{content}\n",
    default_system=_SYSTEM,
    user="<|User|>:{content}\n",
    generation="<|Bot|>:",
    assistant="{content}<eoa>\n",
    stop=("<eoa>",),
)
declare(("intern2", "internlm2"), **{**CHATML, "prefix": "{bos}"}, default_system=_SYSTEM)
