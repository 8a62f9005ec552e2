"""ChatML: <|im_start|>role, newline, content, <|im_end|>; and the models that speak it with words of their own."""

from danlu.templates.named import declare

CHATML = {
    "prefix": "",
    "system": "<|im_start|>system\n{content}<|im_end|>\n",
    "user": "<|im_start|>user\n{content}<|im_end|>\n",
    "observation": "<|im_start|>tool\n{content}<|im_end|>\n",
    "generation": "<|im_start|>assistant\n",
    "assistant": "{content}<|im_end|>\n",
    "stop": ("<|im_end|>",),
}
_MARCO = (
    "你是一个经过良好训练的AI助手，你的名字是Marco-o1.由阿里国际数字商业集团的AI Business创造.\n## 重要！！！！！\n"
    "当你回答问题时，你的思考应该在<Thought>内完成，<Output>内输出你的结果。\n"
    "<Thought>应该尽可能是英文，但是有2个特例，一个是对原文中的引用，另一个是是数学应该使用markdown格式，"
    "<Output>内的输出需要遵循用户输入的语言。\n"
)

declare("chatml", **CHATML)
declare("chatml_de", **CHATML, default_system="Du bist ein freundlicher und hilfsbereiter KI-Assistent.")
declare("yi", **CHATML)
declare("marco", **CHATML, default_system=_MARCO)
declare("smollm", **CHATML)
declare(
    "smollm2", **CHATML,
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face.",
)
