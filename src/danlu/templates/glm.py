"""ChatGLM and GLM, and the CodeGeeX models built on them. Each answer ends with eos, in every round."""

from danlu.templates.named import declare

_ROLES = ("<|user|>", "<|observation|>")
_CODEGEEX = (
    "你是一位智能编程助手，你叫CodeGeeX。你会为用户回答关于编程、代码、计算机方面的任何问题，"
    "并提供格式规范、可以执行、准确安全的代码，并在必要时提供详细的解释。"
)

declare(
    "chatglm2",
    prefix="[gMASK]sop",
    system="{content}\n\n",
    user="[Round {index}]\n\n问：{content}\n\n",
    generation="答：",
    assistant="{content}{eos}\n\n",
    first_index=1,
)
declare("codegeex2", prefix="[gMASK]sop", user="{content}")
declare(
    "chatglm3",
    prefix="[gMASK]sop",
    system="<|system|>\n{content}",
    user="<|user|>\n{content}",
    observation="<|observation|>\n{content}",
    generation="<|assistant|>",
    assistant="\n{content}{eos}",
    tool_format="glm4",
    stop=_ROLES,
)
declare(
    ("glm4", "glm4_moe"),
    prefix="[gMASK]<sop>",
    system="<|system|>\n{content}",
    user="<|user|>\n{content}",
    observation="<|observation|>\n{content}",
    generation="<|assistant|>",
    assistant="\n{content}{eos}",
    tool_format="glm4",
    stop=_ROLES,
)
declare(
    "codegeex4",
    prefix="[gMASK]<sop>",
    system="<|system|>\n{content}",
    default_system=_CODEGEEX,
    user="<|user|>\n{content}",
    observation="<|observation|>\n{content}",
    generation="<|assistant|>\n",
    assistant="{content}{eos}",
    tool_format="glm4",
    stop=_ROLES,
)
