"""The loop, with steps that record when they are dispatched and read: order, hooks, cadence, time, stopping."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.training import stopping
from jaxdiff.training.clock import Clock, Ledger
from jaxdiff.training.hooks import ByTime, Mean, log_hooks, make_cadence, parse_every
from jaxdiff.training.logs import Log, Progress
from jaxdiff.training.loop import MAX_SKIPPED, DivergedError, Hook, calls, run
from jaxdiff.training.state import TrainState
from jaxdiff.training.stopping import StopRequest


class _Number:
    """A metric that says when it was read, and whether it is there yet."""

    def __init__(self, value, events, name, ready=True):
        self._value, self._events, self._name, self._ready = value, events, name, ready

    def is_ready(self):
        return self._ready

    def __float__(self):
        self._events.append(self._name)
        return float(self._value)


class _Job:
    """A run of `steps` steps of which everything is recorded in `events`."""

    def __init__(
        self,
        steps,
        first=0,
        skip=(),
        stop_at=None,
        ready=True,
        make_data=lambda: None,
        log_every=1,
        checkpoint_every=10**6,
        sample_every=0,
        steps_per_call=1,
        more=(),
    ):
        self.events, self.reports = [], {}
        self._skip, self._ready, self._make_data = skip, ready, make_data
        self._several = steps_per_call > 1
        self.clock = Clock(time.time())
        hooks = [
            Hook(log_every, self._report, "metrics"),
            Hook(checkpoint_every, lambda n, m, _: self._happens(f"save {n} skipped {m['skipped']}"), on_stop=True),
            Hook(sample_every, lambda n, m, _: self._happens(f"draw {n}"), on_stop=False),
            *more,
        ]
        self.state, self.done = run(
            TrainState(jnp.int32(first), {}, {}, {}),
            self._step,
            self._batches(first, calls(first, steps, steps_per_call, hooks)),
            jax.random.key(0),
            hooks,
            lambda step: step == stop_at,
            steps=steps,
            batch_size=2,
            clock=self.clock,
            skipped=5 if first else 0,
        )

    def _happens(self, what):
        self.events.append(what)

    def _batches(self, first, counts):
        for count in counts:
            self._make_data()
            yield count, range(first, first + count)
            first += count

    def _step(self, state, batch, key):
        self.events.append(f"dispatch {batch[0]}" + (f"+{len(batch)}" if self._several else ""))
        return state, {
            "loss": [_Number(n, self.events, f"read {n}", self._ready) for n in batch],
            "skipped": [_Number(n in self._skip, [], "") for n in batch],
        }

    def _report(self, step, values, state):
        assert state is None
        self.reports[step] = values
        self.events.append(f"report {step}")


def test_step_n_is_dispatched_before_the_metrics_of_step_n_minus_1_are_read():
    events = [event for event in _Job(3).events if not event.startswith("report")]
    assert events == ["dispatch 0", "dispatch 1", "read 0", "dispatch 2", "read 1", "read 2", "save 3 skipped 0"]


@pytest.mark.parametrize(("ready", "waits"), [(True, 5), (False, 1)])  # the first batch is always waited for
def test_data_are_waited_for_only_when_no_step_is_being_computed(ready, waits, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("jaxdiff.training.clock.time.perf_counter", lambda: now[0])  # nothing takes time but the data
    spans = _Job(5, ready=ready, make_data=lambda: now.__setitem__(0, now[0] + 1.0)).clock.spans
    assert (spans["data_wait"], spans["productive"]) == (waits, 5 - waits)


def test_everything_happens_at_its_cadence_and_a_save_follows_its_reports():
    events = _Job(7, log_every=2, checkpoint_every=3, sample_every=5).events
    happened = [event for event in events if event.split()[0] in ("report", "save", "draw")]
    assert happened == [
        "report 2",
        "save 3 skipped 0",
        "report 4",
        "draw 5",
        "report 6",
        "save 6 skipped 0",
        "report 7",
        "save 7 skipped 0",
        "draw 7",
    ]


def test_a_run_goes_on_where_it_was():
    job = _Job(5, first=3)
    assert [event for event in job.events if "dispatch" in event] == ["dispatch 3", "dispatch 4"]
    assert job.events[-1] == "save 5 skipped 5" and job.done == 5


def test_a_run_that_is_done_does_nothing():
    assert _Job(4, first=4).events == []


def test_a_stop_saves_at_the_step_and_draws_nothing():
    job = _Job(9, stop_at=4, sample_every=2)
    assert job.done == 4 and job.events[-2:] == ["report 4", "save 4 skipped 0"]


def test_calls_of_several_steps_end_where_something_is_due():
    nothing = lambda step, metrics, state: None  # noqa: E731
    hooks = [
        Hook(3, nothing, "metrics"),
        Hook(8, nothing),
        Hook(5, nothing),
        Hook(0, nothing),
        Hook(1, nothing, "call"),
    ]
    assert list(calls(0, 20, 4, hooks)) == [4, 1, 3, 2, 4, 1, 1, 4]
    assert list(calls(7, 20, 4, hooks)) == [1, *calls(8, 20, 4, hooks)] == [1, 2, 4, 1, 1, 4]
    assert list(calls(1, 3)) == [1, 1]


def test_several_steps_a_call_report_and_save_as_one_by_one_do():
    """The same lines, counts and saves; only the rate is that of whole calls."""

    def told(job):
        without = {"images_per_s", "seconds"}
        lines = {step: {k: v for k, v in values.items() if k not in without} for step, values in job.reports.items()}
        return lines, [event for event in job.events if event.split()[0] in ("report", "save", "draw")]

    options = {"skip": (1, 4, 5), "log_every": 2, "checkpoint_every": 6, "sample_every": 5}
    several = _Job(13, **options, steps_per_call=4)
    assert told(several) == told(_Job(13, **options))
    assert [event for event in several.events if "dispatch" in event] == ["dispatch 0+4", "dispatch 4+1"] + [
        f"dispatch {n}" for n in ("5+1", "6+4", "10+2", "12+1")
    ]
    rates = [values["images_per_s"] for values in several.reports.values()]
    assert rates[0] == rates[1] and all(rate > 0 for rate in rates)
    with pytest.raises(DivergedError, match=f"up to {3 + MAX_SKIPPED}"):
        _Job(2 * MAX_SKIPPED, skip=range(3, 3 + MAX_SKIPPED), steps_per_call=7)


def test_skipped_steps_are_counted_and_too_many_in_a_row_end_the_run():
    job = _Job(4, skip=(1, 3))
    assert [job.reports[step]["skipped"] for step in (1, 2, 3, 4)] == [0, 1, 1, 2]
    every_other = range(0, 4 * MAX_SKIPPED, 2)
    assert _Job(4 * MAX_SKIPPED, skip=every_other).done == 4 * MAX_SKIPPED
    with pytest.raises(DivergedError, match="learning_rate"):
        _Job(2 * MAX_SKIPPED, skip=range(3, 3 + MAX_SKIPPED))


@pytest.mark.parametrize("where", ["dispatched", "read"])
def test_the_rate_is_right_at_checkpoints_too(monkeypatch, where):
    """A step takes 5 ms, where it is dispatched (as on CPU) or where it is waited for; saves take as long again."""
    dispatch, number = _Job._step, _Number.__float__
    pause = lambda call: lambda self, *rest: time.sleep(0.005) or call(self, *rest)  # noqa: E731
    if where == "dispatched":
        monkeypatch.setattr(_Job, "_step", pause(dispatch))
    else:
        monkeypatch.setattr(_Number, "__float__", lambda self: time.sleep(0.005 if self._name else 0) or number(self))
    for every in (1, 3):
        rates = {step: values["images_per_s"] for step, values in _Job(12, checkpoint_every=every).reports.items()}
        assert [step for step in range(2, 13) if not 20 < rates[step] < 410] == [], rates


def test_each_kind_of_hook_has_what_it_needs_when_it_needs_it():
    """Of kind "call": at once, nothing read; of kind "state": all metrics read, also at a stop, where it is due."""
    events = []
    job = _Job(
        9,
        stop_at=4,
        checkpoint_every=3,
        more=[
            Hook(1, lambda n, metrics, state: events.append(f"call {n} {metrics} {type(state).__name__}"), "call"),
            Hook(2, lambda n, metrics, state: events.append(f"due {n} {metrics['loss']}"), at_end=False),
            Hook(3, lambda n, metrics, state: events.append(f"not due {n}"), at_end=False),
        ],
    )
    assert events == [
        "call 1 None TrainState",
        "call 2 None TrainState",
        "due 2 1.0",
        "call 3 None TrainState",
        "not due 3",
        "call 4 None TrainState",
        "due 4 3.0",
    ]
    assert job.events[-1] == "save 4 skipped 0"


def test_hooks_only_of_metrics_still_see_the_last_step():
    seen = []
    run(
        TrainState(jnp.int32(0), {}, {}, {}),
        lambda state, batch, key: (state, {"loss": jnp.ones(1), "skipped": jnp.zeros(1)}),
        iter([(1, None)] * 3),
        jax.random.key(0),
        [Hook(2, lambda step, metrics, state: seen.append(step), "metrics")],
        lambda step: False,
        steps=3,
        batch_size=2,
        clock=Clock(time.time()),
    )
    assert seen == [2, 3]


def test_a_line_says_how_fast_where_the_time_went_the_mean_loss_and_the_rate_of_its_update():
    lines, clock = {}, Clock(time.time())
    mean = Mean()
    hooks = log_hooks(3, lines.__setitem__, mean, lambda n: 10.0 * n, clock)
    _Job(8, skip=(1, 6), more=hooks)
    assert list(lines) == [3, 6, 8]  # the last step always
    assert [lines[n]["loss"] for n in lines] == [2, 5, 7]
    assert [lines[n]["loss_mean"] for n in lines] == [1.0, 4.0, 6.5]
    assert [lines[n]["learning_rate"] for n in lines] == [10.0, 40.0, 50.0]  # updates applied before: 1, 4, 5
    assert lines[8]["images_per_s"] > 0
    seconds = lines[8]["seconds"]
    parts = sum(value for name, value in seconds.items() if name != "total")
    assert parts == pytest.approx(seconds["total"], abs=0.01)


def test_the_mean_loss_of_a_line_does_not_depend_on_a_stop():
    def means(pieces):
        lines, mean, first = {}, Mean(), 0
        for steps in pieces:
            write = lambda n, values: lines.__setitem__(n, values["loss_mean"])  # noqa: E731
            _Job(20, first, stop_at=steps, more=log_hooks(5, write, mean, float, Clock(time.time())))
            mean, first = Mean(json.loads(json.dumps(mean.state))), steps
        return lines

    assert means([7, 20]) == means([20]) == {5: 2.0, 10: 7.0, 15: 12.0, 20: 17.0}
    lines, mean = {}, Mean()  # nor on an end that was put off
    for first, steps in ((0, 7), (7, 10)):
        write = lambda n, values: lines.__setitem__(n, values["loss_mean"])  # noqa: E731
        _Job(steps, first, more=log_hooks(5, write, mean, float, Clock(time.time())))
    assert lines == {5: 2.0, 7: 5.5, 10: 7.0}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800), ("0.5s", 0.5)]
)
def test_a_cadence_is_steps_or_a_time(text, seconds):
    assert parse_every(text).total_seconds() == seconds
    assert isinstance(make_cadence(text), ByTime)


@pytest.mark.parametrize("wrong", ["", "m", "10x", "-5", "-10m", "10m5", "0s", "0h0m", "ten", "1m1h", "1,5h", "1e3"])
def test_what_is_no_cadence_is_refused_with_examples(wrong):
    with pytest.raises(ValueError, match="neither a number of steps nor a time; write 500, 90s, 10m or 1h30m"):
        parse_every(wrong)


def test_by_time_a_hook_is_due_after_the_first_call_past_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("jaxdiff.training.hooks.time.monotonic", lambda: now[0])
    wait = lambda: now.__setitem__(0, now[0] + 4.0)  # noqa: E731
    events = _Job(9, stop_at=8, make_data=wait, checkpoint_every=make_cadence("10s"), steps_per_call=1).events
    saves = [event for event in events if event.startswith("save")]
    assert saves == ["save 4 skipped 0", "save 7 skipped 0", "save 8 skipped 0"]  # 12 s after 1 and 4; the stop
    assert list(calls(0, 9, 4, [Hook(make_cadence("10s"), print)])) == [4, 4, 1]  # no call ends for it


def test_by_time_all_processes_do_it_after_the_same_step_and_ask_rarely(monkeypatch):
    """Two processes in lock step whose clocks disagree: process 0's decides, at steps that both know."""
    now, answers, asked = {0: 0.0, 1: 0.0}, {}, {0: 0, 1: 0}
    current = [0]

    def from_first(value):
        process = current[0]
        number = asked[process]
        asked[process] += 1
        if process == 0:
            answers[number] = value
        return answers[number]

    monkeypatch.setattr("jaxdiff.training.hooks.time.monotonic", lambda: now[current[0]])
    monkeypatch.setattr("jaxdiff.training.hooks.jax.process_count", lambda: 2)
    monkeypatch.setattr("jaxdiff.training.hooks.processes.from_first", from_first)
    cadences = {process: make_cadence("10m") for process in (0, 1)}
    due = {0: [], 1: []}
    for step in range(1, 4001):
        for process in (0, 1):
            current[0] = process
            now[process] += 0.5 if process == 0 else 0.7
            if cadences[process].due(step):
                due[process].append(step)
    assert due[0] == due[1] and asked[0] == asked[1] < 50
    assert due[0] == [1201, 2401, 3601]


def test_the_clock_goes_on_from_the_account_of_the_start_before():
    clock = Clock(time.time() - 1.0, {"compile": 10.0, "startup": 2.0, "total": 13.0, "other": 1.0}, lost=4.0)
    with clock("compile"):
        time.sleep(0.05)
    totals = clock.totals()
    assert totals["startup"] == pytest.approx(3.0, abs=0.2) and totals["lost"] == 4.0
    assert totals["compile"] == pytest.approx(10.05, abs=0.2)
    assert totals["total"] == pytest.approx(18.05, abs=0.3)
    assert sum(totals.values()) == pytest.approx(2 * totals["total"], abs=0.01)


def test_without_a_terminal_a_run_says_a_line_every_half_minute(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("jaxdiff.training.logs.time.monotonic", lambda: now[0])
    progress = Progress(0, 1000, batch_size=2)
    for step in range(1, 1001):
        now[0] += 0.2
        progress.update(step, float(step), 10.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 6 + 1  # the first step, every 150 steps, the last
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    assert re.fullmatch(stamp + r"step 1/1000  loss 1.0000  10 images/s  3:20 left", lines[0])
    assert re.fullmatch(stamp + r"step 151/1000  loss 76.5000  10 images/s  2:50 left", lines[1])
    assert re.fullmatch(stamp + r"step 1000/1000  loss \d+.\d{4}  10 images/s", lines[-1])
    Progress(0, 10**6, batch_size=2).update(1, 0.5, 10.0)
    assert capsys.readouterr().out.startswith("note: at this rate the run takes MORE THAN A DAY: 2.3 days\n")


def test_a_bar_on_stderr_leaves_the_lines_to_a_file_on_stdout(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress(0, 3, batch_size=2)
    for step in range(1, 4):
        progress.update(step, 0.5, 10.0)
    progress.close()
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and "loss 0.5000" in said.err


def test_signals_become_a_request_and_a_second_one_ends_the_process(monkeypatch):
    heard, raised = [], []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with StopRequest() as stop:
            assert stop.name is None and not stop.after()
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # the launcher's echo
            assert stop.name == "SIGTERM" and stop.after()
            monkeypatch.setattr(stopping, "ECHO_S", 0.0)
            monkeypatch.setattr(signal, "raise_signal", raised.append)
            os.kill(os.getpid(), signal.SIGTERM)
            assert raised == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with StopRequest() as stop:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(heard) == 1 and stop.name is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_terminal_that_goes_stops_a_run_unless_it_was_started_to_outlast_it():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopRequest() as stop:
            assert not stop.after()
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.after() and stop.name == "SIGHUP"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.after()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["gs:run", "s3:run", "exp[1]", "%41"])
def test_the_log_of_a_workdir_lies_in_it_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    log = Log(Path(name), 0)
    log.write(1, {"loss": 1.0})
    log.close()
    assert [path.name.partition(".")[0] for path in sorted(Path(name).iterdir())] == ["events", "metrics"]


def test_before_the_first_step_a_signal_ends_the_process_whatever_the_main_thread_does():
    left = threading.Event()
    with StopRequest(lambda name: left.set()) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert left.wait(5)
        assert stop.after()
    left.clear()
    with StopRequest(lambda name: left.set()) as stop:
        assert not stop.after()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.after() and not left.wait(0.2)


def _killed(path, began, until):
    """The ledger of a start from `began` whose last sign of life was at `until`."""
    ledger = Ledger(path, began)
    ledger.close()
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "alive": until}))
    os.utime(path, (until + 1e6, until + 1e6))  # as of a copy
    return ledger


def test_what_killed_starts_spent_past_the_checkpoint_is_lost(tmp_path):
    path = tmp_path / "clock.json"
    now = time.time()
    assert _killed(path, now - 100, now - 90).spent == 0
    assert _killed(path, now - 50, now - 45).spent == pytest.approx(10, abs=0.01)
    ledger = Ledger(path, now - 3)
    ledger.close()
    assert ledger.spent == pytest.approx(15, abs=0.01)
    totals = ledger.clock(7, {"productive": 6.0, "total": 6.0}).totals()
    assert totals["lost"] == pytest.approx(9, abs=0.01)
    assert totals["total"] == pytest.approx(18, abs=0.1)
    assert ledger.clock(0, None).totals()["lost"] == pytest.approx(15, abs=0.01)


def test_a_start_that_ended_well_loses_nothing(tmp_path):
    path = tmp_path / "clock.json"
    first = Ledger(path, time.time() - 8)
    first.close(5, {"productive": 8.0, "total": 8.0})
    second = Ledger(path, time.time() - 1)
    before = json.loads(path.read_text())["alive"]
    assert before == pytest.approx(time.time(), abs=0.2)
    time.sleep(0.3)
    assert json.loads(path.read_text())["alive"] > before  # a sign of life
    second.close()
    os.utime(path, (0, 0))  # a copy
    totals = second.clock(5, {"productive": 6.0, "total": 6.0}).totals()
    assert totals["lost"] == pytest.approx(0, abs=0.2) and totals["productive"] == 8.0
    assert second.clock(3, {"productive": 3.0, "total": 3.0}).totals()["lost"] == pytest.approx(5, abs=0.2)


@pytest.mark.parametrize("content", ["", "{", "[]", "1", '{"began": "x", "spent": 1, "closed": null}', '{"spent": 1}'])
def test_a_ledger_cut_short_counts_nothing(tmp_path, content):
    (tmp_path / "clock.json").write_text(content)
    ledger = Ledger(tmp_path / "clock.json", time.time())
    ledger.close()
    assert ledger.spent == 0
