"""One question to a chat completions server: one text back, with time limits and further tries."""

import json
import os
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from danlu.core.errors import ConfigError
from danlu.data.judge.config import JudgeConfig

LONGEST_PAUSE = 60.0
ENDPOINT = "/chat/completions"
SETUP = (401, 403, 404, 405)
"""Statuses that no other question would change."""
TRY_AGAIN = (408, 409, 425, 429)


class RequestFailed(Exception):
    """A question that got no answer after all tries."""


class Failure(Exception):
    """One try went wrong; another may do better."""


class JudgeServer:
    """Asks at temperature 0. Threads may share it."""

    def __init__(self, config: JudgeConfig, *, pause: float = 1.0) -> None:
        """Take the keys; `pause` is the first wait between two tries, in seconds, and doubles from try to try."""
        self._config, self._pause = config, pause
        self._url = config.url.rstrip("/") + ("" if config.url.rstrip("/").endswith(ENDPOINT) else ENDPOINT)
        self._headers = {"Content-Type": "application/json"}
        if key := os.environ.get(config.api_key_env):
            self._headers["Authorization"] = f"Bearer {key}"
        is_here = urlsplit(self._url).hostname in ("localhost", "127.0.0.1", "::1")
        self._opener = build_opener(ProxyHandler({})) if is_here else build_opener()

    def ask(self, text: str) -> str:
        """Return the reply. Raises RequestFailed after all tries, ConfigError when the server takes no such request."""
        body = json.dumps({"model": self._config.model, "messages": [{"role": "user", "content": text}],
                           "temperature": 0, "max_tokens": self._config.max_tokens}).encode()
        said = ""
        for number in range(self._config.retries + 1):
            try:
                return _content(self._post(body))
            except Failure as failure:
                said = str(failure)
            if number < self._config.retries:
                time.sleep(min(self._pause * 2**number, LONGEST_PAUSE))
        raise RequestFailed(said)

    def _post(self, body: bytes) -> bytes:
        request = Request(self._url, body, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._config.timeout) as reply:
                found: bytes = reply.read()
                return found
        except HTTPError as error:
            said = f"status {error.code}: {_start(error.read(400))}"
            if error.code in SETUP:
                raise ConfigError(f"the server refuses every question: {said}", where=self._url,
                                  fix=f"check url, model and the key in {self._config.api_key_env}") from error
            if error.code >= 500 or error.code in TRY_AGAIN:
                raise Failure(said) from error
            raise RequestFailed(said) from error
        except TimeoutError as error:
            raise Failure(f"no reply within {self._config.timeout:g} s") from error
        except (OSError, HTTPException) as error:
            raise Failure(f"{type(error).__name__}: {error}") from error


def _content(body: bytes) -> str:
    """Return the text of the first choice."""
    try:
        reply: Any = json.loads(body)
        text = reply["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise Failure(f"the reply is no chat completion: {_start(body)}") from error
    if not isinstance(text, str):
        raise Failure(f"the reply holds no text: {_start(body)}")
    return text


def _start(body: bytes) -> str:
    return " ".join(body[:400].decode("utf-8", "replace").split())[:120] or "nothing"
