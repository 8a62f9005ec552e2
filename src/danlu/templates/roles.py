"""Formats with a token for each role: Zephyr, OLMo, Granite, EXAONE, Cohere."""

from danlu.templates.named import declare

declare(
    "zephyr",
    prefix="",
    system="<|system|>\n{content}{eos}\n",
    default_system="You are Zephyr, a helpful assistant.",
    user="<|user|>\n{content}{eos}\n",
    generation="<|assistant|>\n",
    assistant="{content}{eos}\n",
)
declare(
    "olmo",
    prefix="{eos}",
    user="<|user|>\n{content}\n",
    generation="<|assistant|>\n",
    assistant="{content}{eos}\n",
)
declare(
    "granite3",
    prefix="",
    system="<|start_of_role|>system<|end_of_role|>{content}<|end_of_text|>\n",
    user="<|start_of_role|>user<|end_of_role|>{content}<|end_of_text|>\n",
    generation="<|start_of_role|>assistant<|end_of_role|>",
    assistant="{content}<|end_of_text|>\n",
    stop=("<|end_of_text|>",),
)
declare(
    "exaone",
    prefix="",
    system="[|system|]{content}[|endofturn|]\n",
    user="[|user|]{content}\n",
    generation="[|assistant|]",
    assistant="{content}{eos}\n",
)
declare(
    "cohere",
    system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
    user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
    generation="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    assistant="{content}<|END_OF_TURN_TOKEN|>",
    stop=("<|END_OF_TURN_TOKEN|>",),
)
