"""Mistral: definitions in front of the first [INST], calls as a JSON list behind [TOOL_CALLS].

The models ask for the definitions in front of the last [INST]; there they would move from round to round, and the
rounds of one dialogue could not be trained as one text.
"""

from typing import Any

from danlu.templates.reading_calls import json_calls
from danlu.templates.tool_format import declare_tools

_LIST: dict[str, Any] = {
    "between": ", ",
    "place": "front",
    "call": '{"name": {quoted}, "arguments": {arguments}}',
    "call_join": ", ",
    "brackets": ("[", "]"),
    "brackets_one": True,
    "join": "",
    "is_bare": True,
    "begin": r"(?=\[)",
    "read": json_calls("arguments"),
}

declare_tools("mistral", **_LIST, intro="[AVAILABLE_TOOLS] [", outro="][/AVAILABLE_TOOLS]", marker="[TOOL_CALLS] ")
declare_tools("mistral_tekken", **_LIST, intro="[AVAILABLE_TOOLS][", outro="][/AVAILABLE_TOOLS]",
              marker="[TOOL_CALLS]")
