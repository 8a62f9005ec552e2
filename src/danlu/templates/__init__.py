"""Chat templates: a conversation becomes text, and tells which characters are trained."""
