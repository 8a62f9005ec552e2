"""Templates that need no control tokens: `default` and other plain-text formats."""

from danlu.templates.named import declare

declare(
    "default",
    prefix="",
    system="System: {content}{eos}\n",
    user="Human: {content}{eos}\n",
    generation="Assistant:",
    assistant="{content}{eos}\n",
)
