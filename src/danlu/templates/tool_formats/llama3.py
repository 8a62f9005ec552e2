"""Llama 3.1 to 4: definitions as indented JSON, a call as a JSON object with `parameters`, several as a list."""

from danlu.templates.reading_calls import json_calls
from danlu.templates.tool_format import declare_tools

declare_tools(
    "llama3",
    intro="You have access to the following functions. To call a function, please respond with JSON for a function "
          'call. Respond in the format {"name": function name, "parameters": dictionary of argument name and its '
          "value}. Do not use variables.\n\n",
    between="\n\n",
    indent=4,
    call='{"name": {quoted}, "parameters": {arguments}}',
    call_join=", ",
    brackets=("[", "]"),
    begin=r"^(?:<\|python_tag\|>)?(?=[\[{])",
    read=json_calls("parameters"),
)
