"""Requests join and leave the batch, and each gets the tokens it would get alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from support.command_line import MODEL

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.engine import Delta, Engine, Request
from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.generation.sampling import SamplingSettings
from fptq_onnx.serving.scheduler import (
    Event,
    Job,
    ModelFailedError,
    QueueFullError,
    Scheduler,
    ShuttingDownError,
)

PROMPTS = ["Once upon a time", "The little dog ran to the park and", "Tim", "One day a girl saw"]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.open(MODEL, threads=1)


class Watched(Job):
    """A job that remembers what it was given."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.events: list[Delta | FptqError] = []
        self.ended = threading.Event()
        self.began = threading.Event()

    @property
    def tokens(self) -> list[int]:
        return [
            one.token for one in self.events if isinstance(one, Delta) and one.token is not None
        ]

    def end(self) -> Delta | FptqError:
        assert self.ended.wait(30)
        return self.events[-1]


def deliver(events: Sequence[Event]) -> None:
    for job, event in events:
        assert isinstance(job, Watched)
        job.events.append(event)
        job.began.set()
        if isinstance(event, FptqError) or event.finish_reason:
            job.ended.set()


@contextmanager
def scheduling(
    new_engine: Callable[[], Engine], max_waiting: int = 64, prefill_tokens: int = 512
) -> Iterator[Scheduler]:
    scheduler = Scheduler(
        new_engine, deliver, max_waiting=max_waiting, prefill_tokens=prefill_tokens
    )
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close()


def asked(model: LanguageModel, prompt: str, tokens: int = 24, **settings: object) -> Watched:
    return Watched(Request(model.encode(prompt), tokens, **settings))  # type: ignore[arg-type]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_many_in_few_rows_get_what_they_get_alone(model: LanguageModel) -> None:
    drawn = SamplingSettings(temperature=0.8, seed=3)
    jobs = [
        asked(model, PROMPTS[number % 4], 5 + 7 * (number % 5), sampling=settings)
        for number, settings in enumerate([SamplingSettings(), drawn] * 8)
    ]
    with scheduling(lambda: model.engine(max_sequences=3)) as scheduler:
        for job in jobs:
            scheduler.submit(job)
        for job in jobs:
            last = job.end()
            assert isinstance(last, Delta) and last.finish_reason == "length"
        assert (scheduler.waiting, scheduler.running) == (0, 0)
    for job in jobs:
        *_, alone = model.engine().stream(job.request)
        assert job.tokens == alone.generation.tokens
        text = "".join(one.text for one in job.events if isinstance(one, Delta))
        assert text == alone.generation.text


def test_first_come_first_served(model: LanguageModel) -> None:
    order: list[Job] = []

    def note(events: Sequence[Event]) -> None:
        order.extend(job for job, _ in events if job not in order)
        deliver(events)

    jobs = [asked(model, PROMPTS[0], 4) for _ in range(6)]
    scheduler = Scheduler(lambda: model.engine(max_sequences=2), note, max_waiting=8)
    for job in jobs:
        scheduler.submit(job)
    scheduler.start()
    for job in jobs:
        job.end()
    scheduler.close()
    assert order == jobs


def test_prompts_that_join_together_are_bounded(model: LanguageModel) -> None:
    rounds: list[int] = []
    scheduler = Scheduler(
        lambda: model.engine(max_sequences=8), deliver, max_waiting=8, prefill_tokens=12,
        observe_step=lambda rows, seconds: rounds.append(rows),
    )  # fmt: skip
    jobs = [asked(model, PROMPTS[0], 20) for _ in range(5)]  # 5 tokens each: two fit
    for job in jobs:
        scheduler.submit(job)
    scheduler.start()
    for job in jobs:
        job.end()
    scheduler.close()
    assert rounds[:3] == [2, 4, 5]


def test_a_long_prompt_lets_the_others_go_on(model: LanguageModel) -> None:
    long = "One day a girl saw a big dog. The dog was sad. " * 4
    steps: list[int] = []
    scheduler = Scheduler(
        lambda: model.engine(max_sequences=4), deliver, max_waiting=8, prefill_tokens=8,
        observe_step=lambda rows, seconds: steps.append(rows),
    )  # fmt: skip
    jobs = [asked(model, PROMPTS[0], 60), asked(model, long, 10), asked(model, long[2:], 10)]
    for job in jobs:
        scheduler.submit(job)
    scheduler.start()
    for job in jobs:
        job.end()
    scheduler.close()
    # In a round the second prompt is fed eight tokens, and one beside the first request's.
    rounds = (len(jobs[1].request.prompt) - 1) // 9
    assert rounds > 5
    assert steps[: 3 + rounds] == [1] * (1 + rounds) + [2, 2]
    for job in jobs:
        *_, alone = model.engine().stream(job.request)
        assert job.tokens == alone.generation.tokens


def test_a_full_queue_refuses(model: LanguageModel) -> None:
    with scheduling(lambda: model.engine(max_sequences=1), max_waiting=1) as scheduler:
        first = asked(model, PROMPTS[0], 200, ignore_eos=True)
        scheduler.submit(first)
        assert first.began.wait(30)
        second = asked(model, PROMPTS[1], 3)
        scheduler.submit(second)
        with pytest.raises(QueueFullError, match="1 requests wait already"):
            scheduler.submit(asked(model, PROMPTS[2]))
        scheduler.cancel(first)
        assert isinstance(second.end(), Delta)
        scheduler.submit(third := asked(model, PROMPTS[2], 2))
        third.end()


def test_who_is_cancelled_frees_the_row_and_nobody_else_notices(model: LanguageModel) -> None:
    with scheduling(lambda: model.engine(max_sequences=2)) as scheduler:
        stays = asked(model, PROMPTS[1], 60, ignore_eos=True)
        goes = asked(model, PROMPTS[0], 240, ignore_eos=True)
        waits = asked(model, PROMPTS[3], 10)
        never = asked(model, PROMPTS[2], 10)
        for job in (stays, goes, never, waits):
            scheduler.submit(job)
        assert goes.began.wait(30)
        scheduler.cancel(never)
        scheduler.cancel(goes)
        waits.end()
        stays.end()
        until(lambda: scheduler.running == 0)
        scheduler.cancel(stays)  # has ended: nothing happens
    assert 0 < len(goes.tokens) < 240
    assert never.events == []
    for job in (stays, waits):
        *_, alone = model.engine().stream(job.request)
        assert job.tokens == alone.generation.tokens


def test_drain_lets_running_ones_end_and_close_does_not(model: LanguageModel) -> None:
    with scheduling(lambda: model.engine(max_sequences=1)) as scheduler:
        runs, waits = asked(model, PROMPTS[0], 50), asked(model, PROMPTS[1], 5)
        scheduler.submit(runs)
        assert runs.began.wait(30)
        scheduler.submit(waits)
        scheduler.drain()
        assert isinstance(waits.end(), ShuttingDownError)
        with pytest.raises(ShuttingDownError):
            scheduler.submit(asked(model, PROMPTS[2]))
        assert isinstance(runs.end(), Delta) and len(runs.tokens) == 50
    with scheduling(lambda: model.engine(max_sequences=1)) as scheduler:
        scheduler.submit(runs := asked(model, PROMPTS[0], 240, ignore_eos=True))
        assert runs.began.wait(30)
        scheduler.close()
        assert isinstance(runs.end(), ShuttingDownError)
        assert not scheduler.alive


def test_a_prompt_too_long_is_refused_at_once(model: LanguageModel) -> None:
    with scheduling(model.engine) as scheduler, pytest.raises(FptqError, match="shorten it"):
        scheduler.submit(Watched(Request((1,) * 400)))


def test_a_model_that_fails_gets_a_new_engine(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Engine] = []

    def engine() -> Engine:
        made.append(model.engine(max_sequences=2))
        return made[-1]

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of order")

    with scheduling(engine, prefill_tokens=16) as scheduler:
        job = asked(model, PROMPTS[0], 200, ignore_eos=True)
        scheduler.submit(job)
        assert job.began.wait(30)
        made[0].step = broken  # type: ignore[method-assign,assignment]
        error = job.end()
        assert isinstance(error, ModelFailedError) and "out of order" in str(error)
        until(lambda: len(made) == 2)
        for method, prompt in (("add", PROMPTS[0]), ("feed", "the dog " * 20)):
            monkeypatch.setattr(made[-1], method, broken)
            scheduler.submit(job := asked(model, prompt, 5))
            error = job.end()
            assert isinstance(error, ModelFailedError) and "out of order" in str(error)
            monkeypatch.undo()
        scheduler.submit(job := asked(model, PROMPTS[0], 5))
        job.end()
        assert len(job.tokens) == 5
        assert (len(made), scheduler.alive) == (2, True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_died(model: LanguageModel) -> None:
    engines = iter([model.engine()])
    with scheduling(lambda: next(engines)) as scheduler:
        job = asked(model, PROMPTS[0], 200, ignore_eos=True)
        waits = asked(model, PROMPTS[0], 200)
        scheduler.submit(job)
        assert job.began.wait(30)
        scheduler.submit(waits)
        scheduler._engine.step = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        assert isinstance(job.end(), ModelFailedError)
        assert isinstance(waits.end(), ShuttingDownError)
        until(lambda: not scheduler.alive)
        with pytest.raises(ShuttingDownError):
            scheduler.submit(asked(model, PROMPTS[0]))
