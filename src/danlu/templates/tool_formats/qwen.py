"""Qwen 2.5 and 3, and Hermes before them: signatures within <tools>, each call as JSON within <tool_call>."""

import re

from danlu.templates.reading_calls import headed_call
from danlu.templates.tool_format import declare_tools

declare_tools(
    "qwen",
    intro="# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
          "You are provided with function signatures within <tools></tools> XML tags:\n<tools>",
    definition="\n{definition}",
    outro="\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
          "<tool_call></tool_call> XML tags:\n<tool_call>\n"
          '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    call='<tool_call>\n{"name": {quoted}, "arguments": {arguments}}\n</tool_call>',
    begin=r"(?=<tool_call>)",
    read=headed_call(re.compile(r"<tool_call>"), "arguments", "</tool_call>"),
)
