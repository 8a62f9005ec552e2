"""Mistral: [INST] rounds, the system message inside the first one or in a block of its own."""

from danlu.templates.named import declare

declare(
    ("mistral", "mixtral"),
    system="{content}\n\n",
    system_in_user=True,
    user="[INST] {content}[/INST]",
    observation='[TOOL_RESULTS] {"content": {content}}[/TOOL_RESULTS]',
    assistant=" {content}{eos}",
    tool_format="mistral",
    is_plain=True,
)
declare(
    "ministral",
    system="{content}\n\n",
    system_in_user=True,
    user="[INST]{content}[/INST]",
    observation='[TOOL_RESULTS]{"content": {content}}[/TOOL_RESULTS]',
    tool_format="mistral_tekken",
)
declare(
    "mistral_small",
    system="[SYSTEM_PROMPT]{content}[/SYSTEM_PROMPT]",
    user="[INST]{content}[/INST]",
    observation='[TOOL_RESULTS]{"content": {content}}[/TOOL_RESULTS]',
    tool_format="mistral_tekken",
)
