"""Plain words, for any tokenizer: definitions as lines of JSON; calls in the ReAct way (Yao et al. 2023), two lines."""

import re

from danlu.templates.reading_calls import headed_call
from danlu.templates.tool_format import declare_tools

declare_tools(
    "default",
    intro="Tools, one definition in JSON a line:\n",
    definition="{definition}\n",
    is_nested=False,
    outro="\nA tool is called in two lines:\nAction: name of the tool\nAction Input: its arguments, one JSON object",
    call="Action: {name}\nAction Input: {arguments}",
    begin=r"^(?=Action:)",
    read=headed_call(re.compile(r"Action:[ \t]*(\S[^\n]*?)[ \t]*\n[ \t]*Action Input:")),
)
