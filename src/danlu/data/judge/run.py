"""Judge every pair of answers in both orders and write the pairs that both agree on; nothing is asked for twice."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from hashlib import blake2b
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from danlu.core.console import say
from danlu.core.errors import ConfigError, UserError
from danlu.core.records import Message, Preference
from danlu.data.clean.output import WholeFiles, check_output, json_line
from danlu.data.clean.source import data_files
from danlu.data.judge.ballot import Ballot, Reply, ScoredPair, is_equal
from danlu.data.judge.config import JudgeConfig
from danlu.data.judge.journal import Journal
from danlu.data.judge.questions import Question, read_questions
from danlu.data.judge.server import JudgeServer, RequestFailed
from danlu.data.judge.wording import question
from danlu.data.registry import INFO_FILE

AHEAD = 4
TOLD_EVERY = 100
Score = Callable[[Sequence[Preference]], list[list[float] | None]]
Pending = tuple[Question, tuple[int, int], list[Future[Reply]]]


def judge(config: JudgeConfig, *, score: Score | None = None, pause: float = 1.0) -> Counter[str]:
    """Write pairs, ledger and the entry of dataset_info.json; return the number of pairs of each outcome.

    score  the reward model's scores of each record's answers; None: the judge behind the url is asked
    Raises UserError when the server is gone: what it said until then is kept, and the same command goes on from there.
    """
    output = Path(config.output)
    inputs = data_files(config.input, config.dataset_dir)
    check_output(output, inputs, overwrite=config.overwrite)
    check_output(config.ledger_path, inputs, overwrite=config.overwrite)
    _with_entry(config)
    questions = read_questions(config)
    counts: Counter[str] = Counter()
    with closing(Journal(config.journal_path)) as journal, WholeFiles() as whole:
        if len(journal):
            say(f"{len(journal)} verdicts were given before: {config.journal_path}")
        rows, ledger = whole.open(output), whole.open(config.ledger_path)
        ballots: Iterator[Ballot | ScoredPair] = _scored(questions, config, score) if score else _standing(
            _ballots(questions, config, journal, JudgeServer(config, pause=pause)), config)
        for ballot in ballots:
            counts[ballot.outcome] += 1
            ledger.write(json_line(ballot.entry(), str(output)))
            if ballot.outcome == "judged":
                rows.write(json_line(ballot.row(config.model or config.reward_model), str(output)))
            if counts.total() % TOLD_EVERY == 0:
                say(f"{counts.total()} pairs: {', '.join(f'{n} {name}' for name, n in counts.most_common())}")
        ledger.write(json_line({"counts": counts}, str(output)))
    path, content = _with_entry(config)
    with WholeFiles() as whole:
        whole.open(path).write(json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
    return counts


def _ballots(questions: Sequence[Question], config: JudgeConfig, journal: Journal,
             server: JudgeServer) -> Iterator[Ballot]:
    """Yield every pair in order; requests run ahead of it."""
    pairs = ((asked, pair) for asked in questions for pair in combinations(range(len(asked.answers)), 2))
    pool, under_way = ThreadPoolExecutor(config.concurrency), deque[Pending]()

    def sent(asked: Question, pair: tuple[int, int]) -> Pending:
        if is_equal(asked.answers, pair):
            return asked, pair, []
        return asked, pair, [pool.submit(_reply, _words(asked, order, config), config, journal, server)
                             for order in (pair, (pair[1], pair[0]))]

    try:
        under_way.extend(sent(*one) for one in islice(pairs, AHEAD * config.concurrency))
        while under_way:
            asked, pair, replies = under_way.popleft()
            yield Ballot(asked, pair, tuple(one.result() for one in replies))
            under_way.extend(sent(*one) for one in islice(pairs, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _scored(questions: Sequence[Question], config: JudgeConfig, score: Score) -> Iterator[ScoredPair]:
    """Yield every pair in order, its answers scored a batch of prompts at a time."""
    for start in range(0, len(questions), config.batch_size):
        part = questions[start:start + config.batch_size]
        different = [list(dict.fromkeys(answer.strip() for answer in one.answers)) for one in part]
        rows = [index for index, answers in enumerate(different) if len(answers) > 1]
        found = score([Preference(part[index].prompt, tuple(Message("assistant", text) for text in different[index]),
                                  part[index].origin) for index in rows])
        known = {index: dict(zip(different[index], scores or (), strict=False))
                 for index, scores in zip(rows, found, strict=True)}
        for index, asked in enumerate(part):
            for pair in combinations(range(len(asked.answers)), 2):
                both = [known.get(index, {}).get(asked.answers[which].strip()) for which in pair]
                first, second = both
                skipped = first is None or second is None or is_equal(asked.answers, pair)
                yield ScoredPair(asked, pair, None if skipped else (float(first or 0.0), float(second or 0.0)))


def _standing(ballots: Iterator[Ballot], config: JudgeConfig) -> Iterator[Ballot]:
    """Pass ballots on until the server is gone. Raises UserError then."""
    failures = 0
    for ballot in ballots:
        for reply in ballot.replies:
            failures = failures + 1 if reply.failure else 0
            if failures >= config.give_up_after:
                raise UserError(f"{failures} requests in a row failed; the last: {reply.failure}", where=config.url,
                                fix="start the server and repeat the command: no verdict is asked for twice")
        yield ballot


def _words(asked: Question, order: tuple[int, int], config: JudgeConfig) -> str:
    return question(asked.prompt, asked.answers[order[0]], asked.answers[order[1]], config.lang)


def _reply(text: str, config: JudgeConfig, journal: Journal, server: JudgeServer) -> Reply:
    key = blake2b(json.dumps([config.model, config.max_tokens, text]).encode(), digest_size=16).hexdigest()
    known = journal.find(key)
    if known is not None:
        return Reply(known)
    try:
        reply = server.ask(text)
    except RequestFailed as failure:
        return Reply("", str(failure))
    journal.keep(key, reply)
    return Reply(reply)


def _with_entry(config: JudgeConfig) -> tuple[Path, dict[str, Any]]:
    """Return dataset_info.json beside the output, and what it holds with the new entry."""
    path = Path(config.output).with_name(INFO_FILE)
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": Path(config.output).name, "formatting": "preference", "ranking": True, "columns": columns}
    try:
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"this file is no JSON: {error}", where=str(path), fix="mend it first") from None
    if found.get(config.set_name, entry) != entry and not config.overwrite:
        raise ConfigError(f'a data set "{config.set_name}" is registered already', where=str(path),
                          fix="choose another --name, or set overwrite: true")
    return path, {**found, config.set_name: entry}
