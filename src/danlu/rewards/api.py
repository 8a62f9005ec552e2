"""Rewards from an HTTP server: texts in, scores out, with time limits and tries; no reply is trusted unread."""

import json
import time
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from transformers import PreTrainedTokenizerBase

from danlu.core.console import warn
from danlu.core.errors import UserError
from danlu.generation.detokenize import decode
from danlu.rewards.base import LARGEST, REWARDS, Answer, RewardContext, RewardError, RewardSource
from danlu.rewards.config import RewardKeys

BATCH = 32
LONGEST_PAUSE = 60.0  # seconds
MOST_BYTES = 1 << 26
CHUNK = 1 << 16
BUSY = 429


class Failure(Exception):
    """One try went wrong; another may do better."""


@REWARDS.register("api")
class ApiReward(RewardSource):
    """POST {"model": "reward", "messages": [text, ...]} -> {"scores": [number, ...]}, one text an answer.

    A text is the whole dialogue with its control tokens, as the policy's tokens spell it.
    """

    name = "api"

    def __init__(self, url: str, tokenizer: PreTrainedTokenizerBase, keys: RewardKeys, *, pause: float = 1.0) -> None:
        """Take the URL; `pause` is the first wait between two tries, in seconds, and doubles from try to try."""
        self._url, self._tokenizer, self._pause = url, tokenizer, pause
        self._timeout, self._retries = keys.reward_timeout, keys.reward_retries
        self._size = keys.reward_batch_size or BATCH
        self._opener = _opener(url)

    @classmethod
    def build(cls, source: str, keys: RewardKeys, context: RewardContext) -> Self:
        parts = urlsplit(source)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f'"{source}" is no URL', where="reward_model",
                            fix="write http://HOST:PORT/v1/score/evaluation, or choose another reward_model_type")
        return cls(source, context.tokenizer, keys)

    def score(self, answers: Sequence[Answer]) -> list[float]:
        texts = [decode(self._tokenizer, [*one.prompt_ids, *one.ids], skip_special_tokens=False) for one in answers]
        scores: list[float] = []
        for start in range(0, len(texts), self._size):
            scores += self._ask(texts[start:start + self._size])
        return scores

    def _ask(self, texts: list[str]) -> list[float]:
        """Return the scores of one request; try again while the server fails."""
        for number in range(self._retries + 1):
            try:
                return _read(self._post(texts), len(texts))
            except Failure as failure:
                said = str(failure)
            if number < self._retries:
                pause = min(self._pause * 2**number, LONGEST_PAUSE)
                warn(f"reward server {self._url}: {said}; trying again in {pause:.3g} s")
                time.sleep(pause)
        tries = self._retries + 1
        raise RewardError(
            f"the reward server failed {tries} times in a row; the last time: {said}", where=self._url,
            fix="start the server again and repeat the command: the run goes on from its last checkpoint. A slow "
                "server needs a higher reward_timeout or a lower reward_batch_size")

    def _post(self, texts: list[str]) -> bytes:
        """Return the body of the server's reply. Raises Failure when there is none worth waiting for any longer."""
        body = json.dumps({"model": "reward", "messages": texts}).encode()
        request = Request(self._url, body, {"Content-Type": "application/json"}, method="POST")
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as reply:
                return self._body(reply, deadline)
        except HTTPError as error:
            said = f"status {error.code} ({_refusal(error)})"
            if error.code >= 500 or error.code == BUSY:
                raise Failure(said) from error
            raise RewardError(
                f"the reward server refuses the request: {said}", where=self._url,
                fix='check the URL, and that it takes {"model", "messages"} as docs/rewards.md says') from error
        except TimeoutError as error:
            raise Failure(f"no whole reply within {self._timeout:g} s") from error
        except URLError as error:
            raise Failure(f"no connection: {error.reason}") from error
        except (OSError, HTTPException) as error:
            raise Failure(f"{type(error).__name__}: {error}") from error

    def _body(self, reply: Any, deadline: float) -> bytes:
        """Read until the end; a server that drips bytes does not hold the run up beyond the deadline."""
        body = b""
        while part := reply.read1(CHUNK):
            body += part
            if time.monotonic() > deadline:
                raise TimeoutError
            if len(body) > MOST_BYTES:
                raise Failure(f"a reply of more than {MOST_BYTES} bytes")
        return body


def _read(body: bytes, count: int) -> list[float]:
    """Return the scores in a reply. Raises Failure when it is anything but one finite number for each text."""
    try:
        reply = json.loads(body)
    except ValueError as error:
        raise Failure(f"the reply is no JSON: {_shortened(body)}") from error
    scores = reply.get("scores") if isinstance(reply, dict) else None
    if not isinstance(scores, list):
        raise Failure(f'the reply has no list "scores": {_shortened(body)}')
    if len(scores) != count:
        raise Failure(f"{len(scores)} scores for {count} texts")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= LARGEST:
            raise Failure(f"the score {_shortened(json.dumps(score).encode())} is no finite number")
    return [float(score) for score in scores]


def _refusal(error: HTTPError) -> str:
    """Return the start of what the server says of the error, as far as it comes."""
    try:
        return _shortened(error.read(400))
    except (OSError, HTTPException):
        return "no text"


def _shortened(body: bytes) -> str:
    text = " ".join(body[:400].decode("utf-8", "replace").split())
    return (text[:117] + "..." if len(text) > 120 else text) or "nothing"


def _opener(url: str) -> OpenerDirector:
    """Return what opens URLs; this machine itself is never asked through a proxy."""
    is_here = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    return build_opener(ProxyHandler({})) if is_here else build_opener()
