"""One Generator protocol for chat, evaluation, rollouts and the server."""
