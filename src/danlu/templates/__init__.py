"""Chat templates: a conversation becomes text, and tells which characters are trained."""

from danlu.templates.base import TEMPLATES, ChatTemplate, EncodeOptions
from danlu.templates.choose import resolve
from danlu.templates.encoded import Encoded

__all__ = ["TEMPLATES", "ChatTemplate", "EncodeOptions", "Encoded", "resolve"]
