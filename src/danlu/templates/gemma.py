"""Gemma: <start_of_turn> rounds; the system message goes into the first user turn."""

from danlu.templates.named import declare

declare(
    ("gemma", "gemma2", "gemma3"),
    system="{content}\n\n",
    system_in_user=True,
    user="<start_of_turn>user\n{content}<end_of_turn>\n",
    observation="<start_of_turn>tool\n{content}<end_of_turn>\n",
    generation="<start_of_turn>model\n",
    assistant="{content}<end_of_turn>\n",
    stop=("<end_of_turn>",),
)
