"""Preference data from prompts with several answers, judged by a model behind an OpenAI-compatible URL."""
