"""GLM-4: a heading for each definition; a call is a line with the name and a line with the arguments."""

import re

from danlu.templates.reading_calls import headed_call
from danlu.templates.tool_format import declare_tools

_NAME = r"""[^\s<>{}\[\]"](?:[^\n<>{}\[\]"]*[^\s<>{}\[\]"])?"""

declare_tools(
    "glm4",
    intro="你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
          "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具",
    definition="\n\n## {name}\n\n{definition}\n在调用上述函数时，请使用 Json 格式表示调用的参数。",
    is_nested=False,
    indent=4,
    call="{name}\n{arguments}",
    is_bare=True,
    begin=rf"^(?={_NAME}[ \t]*\n\s*\{{)",
    read=headed_call(re.compile(rf"({_NAME})[ \t]*\n")),
)
