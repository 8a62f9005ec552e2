"""Run a pipeline: each step in a process of its own, those already done left out, a broken one taken up again."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from danlu.core.console import say
from danlu.core.errors import ConfigError, UserError, did_you_mean
from danlu.core.run_dir import CHECKPOINT_PREFIX, write_json, write_whole
from danlu.launch.child import Finished, run_child
from danlu.launch.compare import compare
from danlu.launch.fingerprint import fingerprint
from danlu.launch.journal import SUMMARY, Journal, Mark
from danlu.launch.kinds import command_line
from danlu.launch.page import PAGE, pipeline_page
from danlu.launch.pipeline_file import Pipeline
from danlu.launch.plan import Planned, plan_steps
from danlu.launch.summary import Outcome, as_json, table

ALL = "*"
State = Literal["done", "resume", "run"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which steps to run. `force` and the others name a step; force ALL means every step."""

    force: str | None = None
    start: str | None = None
    only: str | None = None
    dry_run: bool = False


class PipelineRun:
    """One run of a pipeline: what each step's state is, and what became of it."""

    def __init__(self, pipeline: Pipeline, choice: Choice) -> None:
        self.pipeline, self.choice = pipeline, choice
        self.steps = plan_steps(pipeline)
        self.journal = Journal(Path(pipeline.output_dir))
        self.outcomes: list[Outcome] = []
        self._runs: dict[str, str] = {}
        names = [step.name for step in self.steps]
        for name in (choice.force, choice.start, choice.only):
            if name not in (None, ALL, *names):
                raise ConfigError(f'no step is called "{name}"', where="command line",
                                  fix=did_you_mean(str(name), names))

    def run(self) -> int:
        """Run what is to be run; print the summary; return the exit code of the first step that fails, else 0."""
        code = 0
        for number, step in enumerate(self.steps, 1):
            if not self._is_chosen(step):
                continue
            label = f"[{number}/{len(self.steps)}] {step.name}"
            code = self._dry(step, label) if self.choice.dry_run else self._one(step, label)
            if not self.choice.dry_run:
                self._write_page()
            if code:
                break
        if self.choice.dry_run:
            return 0
        self._finish()
        return code

    def _is_chosen(self, step: Planned) -> bool:
        """Return whether this step is looked at; one before --from, or beside --only, must be done already."""
        names = [one.name for one in self.steps]
        left_out = (self.choice.only not in (None, step.name)
                    or (self.choice.start is not None and names.index(step.name) < names.index(self.choice.start)))
        if left_out:
            mark = self.journal.read(step.name)
            self._runs[step.name] = mark.run if mark is not None and mark.is_done else ""
        return not left_out

    def _state(self, step: Planned, mark: Mark | None, found: str) -> State:
        starting = self.choice.start is not None  # steps before the first have been left out
        forced = self.choice.force in (ALL, step.name) or self.choice.only == step.name or starting
        if forced or mark is None or mark.fingerprint != found:
            return "run"
        if not mark.is_done:
            return "resume"
        return "done" if step.kind.name == "command" or not step.kind.folder_key or step.folder.is_dir() else "run"

    def _fingerprint(self, step: Planned) -> str:
        missing = [name for name in step.upstream if not self._runs[name]]
        if missing and not self.choice.dry_run:
            raise UserError(f"step {missing[0]} is not done, and {step.name} needs it",
                            where=f"pipeline {self.pipeline.name}", fix="run the pipeline without --only and --from")
        return fingerprint(step.kind.name, step.kind.with_implied(step.values),
                           {name: self._runs[name] for name in step.upstream}, self.journal.output_dir)

    def _dry(self, step: Planned, label: str) -> int:
        mark = self.journal.read(step.name)
        state = self._state(step, mark, self._fingerprint(step))
        self._runs[step.name] = mark.run if state == "done" and mark is not None else "to come"
        say(f"{label}: {'already done' if state == 'done' else state}")
        if state != "done":
            say("\n".join(f"    {key}: {value}" for key, value in step.verb_values.items()))
        return 0

    def _one(self, step: Planned, label: str) -> int:
        found = self._fingerprint(step)
        mark = self.journal.read(step.name)
        state = self._state(step, mark, found)
        if state == "done" and mark is not None:
            self._runs[step.name] = mark.run
            self.outcomes.append(_outcome(step, "already done", mark))
            say(f"{label}: already done")
            return 0
        if not (state == "resume" and _goes_on(step)):
            self.journal.clear(step.name, step.folder)
        say(f"{label}: {'going on' if state == 'resume' else 'begins'}")
        begun = Mark(found, f"{found}-{time.time_ns()}")
        self.journal.write(step.name, begun)
        self._write_page(running=step.name)
        finished = self._execute(step)
        costs = replace(begun, seconds=finished.seconds, cpu_seconds=finished.cpu_seconds, peak_mib=finished.peak_mib)
        if finished.code:
            return self._stop(step, finished, costs)
        done = replace(costs, is_done=True, numbers=step.kind.numbers(step.folder))
        self.journal.write(step.name, done)
        self._runs[step.name] = done.run
        self.outcomes.append(_outcome(step, "done", done))
        return 128 + finished.stopped_by if finished.stopped_by else 0

    def _execute(self, step: Planned) -> Finished:
        """Run a step: a comparison here, everything else in a process of its own, so that its memory is freed."""
        if step.kind.name == "compare":
            start, before = time.monotonic(), time.process_time()
            print(compare(step.values["evaluations"], int(step.values.get("show", 8))), flush=True)
            return Finished(0, time.monotonic() - start, time.process_time() - before, 0.0, 0)
        if step.kind.name == "command":
            step.folder.parent.mkdir(parents=True, exist_ok=True)
        file = self.journal.write_file(step.name, step.verb_values)
        command = command_line(step.kind, step.values, file)
        try:
            return run_child(command, self.pipeline.environment)
        except OSError as error:
            raise UserError(f"{command[0]} cannot be started: {error.strerror}", where=f"step {step.name}",
                            fix="check the program's name") from error

    def _stop(self, step: Planned, finished: Finished, mark: Mark) -> int:
        """Say why the pipeline ends here and how it goes on; return the exit code."""
        code = 128 + finished.stopped_by if finished.stopped_by else finished.code
        code = 128 - code if code < 0 else code
        status = "interrupted" if finished.stopped_by else "failed"
        self.outcomes.append(_outcome(step, status, mark))
        say(f"error: step {step.name} of {self.pipeline.path} "
            + ("was interrupted" if finished.stopped_by else f"failed with exit code {code}; its message stands above")
            + f"\n  fix: run `danlu run {self.pipeline.path}` again; it goes on from this step")
        return code

    def _finish(self) -> None:
        reached = {one.step: one for one in self.outcomes}
        self.outcomes = [reached.get(step.name, Outcome(step.name, "not run")) for step in self.steps]
        self.journal.output_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.journal.output_dir / SUMMARY, as_json(self.pipeline.name, self.outcomes))
        self._write_page()
        places = [os.path.join(self.pipeline.output_dir, name) for name in (SUMMARY, PAGE)]
        print("\n".join(["", table(self.outcomes), *places]), flush=True)

    def _write_page(self, running: str = "") -> None:
        """Write pipeline.html as things stand; `running` names the step that is under way."""
        reached = {one.step: one for one in self.outcomes if one.status != "not run"}
        shown = [Outcome(step.name, "running") if step.name == running else reached.get(step.name) or
                 self._earlier(step) for step in self.steps]
        self.journal.output_dir.mkdir(parents=True, exist_ok=True)
        write_whole(self.journal.output_dir / PAGE,
                    pipeline_page(self.pipeline.name, self.journal.output_dir, self.steps, shown))

    def _earlier(self, step: Planned) -> Outcome:
        """Return what an earlier run left of a step that this one has not reached."""
        mark = self.journal.read(step.name)
        if mark is None:
            return Outcome(step.name, "not run")
        return _outcome(step, "done earlier" if mark.is_done else "begun earlier", mark)


def run_pipeline(pipeline: Pipeline, choice: Choice) -> int:
    """Run a pipeline and return the exit code.

    Raises UserError for a mistake in the file, and for a step that needs one that is not done.
    """
    return PipelineRun(pipeline, choice).run()


def _goes_on(step: Planned) -> bool:
    """Return whether a broken run of this step leaves something to go on from."""
    return step.kind.name == "command" or any(step.folder.glob(f"{CHECKPOINT_PREFIX}*"))


def _outcome(step: Planned, status: str, mark: Mark) -> Outcome:
    return Outcome(step.name, status, mark.seconds, mark.cpu_seconds, mark.peak_mib, mark.numbers)
