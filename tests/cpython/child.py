"""The inside of one conformance run: puts a loop behind CPython's asyncio tests and runs one module of them.

`run.py` starts this file as a process of its own:

    child.py LOOP MODULE EVENTS [ONLY]

LOOP is the module that brings the loop (`fastloop`, `uvloop`) or `asyncio` for the stock one. MODULE is a module of
`test.test_asyncio`; with `+real` behind its name, tests that make a bare `BaseEventLoop`, or the suite's simulated `TestLoop`
without a script of time, get the real loop instead. EVENTS is a file to which one JSON object per line is appended; ONLY is a JSON file with the
ids of the tests to run.

Nothing here knows fastloop: a loop is placed where any code would meet it (the event loop policy, `asyncio.EventLoop`,
`asyncio.SelectorEventLoop`), and each of these places is asked for a loop before the first test runs.
"""

import asyncio
import asyncio.unix_events
import collections
import importlib
import json
import os
import signal
import sys
import time
import traceback
import unittest

# In these modules the loop's own Task and Future stand in for the C classes of asyncio.
TYPED_MODULES = {"test_tasks", "test_futures", "test_futures2", "test_eager_task_factory"}

# Tests of test_base_events that put mocks into asyncio's own `_run_once`, `_ready` and selector; `+real` leaves them out.
DRIVEN_BY_MOCKS = {
    "test__add_callback_cancelled_handle",
    "test__add_callback_handle",
    "test__run_once",
    "test__run_once_cancelled_event_cleanup",
    "test__run_once_schedule_handle",
    "test_custom_run_forever_integration",
    "test_not_implemented",
    "test_run_forever_pre_stopped",
    "test_single_selecter_event_callback_after_stopping",
}

StockTask, StockFuture, StockSelectorLoop = asyncio.Task, asyncio.Future, asyncio.SelectorEventLoop
# The name of the default policy's class changed when 3.14 deprecated policies.
POLICY_NAME = "_DefaultEventLoopPolicy" if sys.version_info >= (3, 14) else "DefaultEventLoopPolicy"


class StandIn:
    """Takes the place of a loop class: calling it makes the loop under test, deriving from it derives from that loop's class."""

    def __init__(self, subject):
        self._subject = subject

    def __call__(self, selector=None):
        return self._subject.make(selector)

    def __mro_entries__(self, bases):
        return (self._subject.loop_type,)

    def __instancecheck__(self, instance):
        return isinstance(instance, self._subject.loop_type)

    def __subclasscheck__(self, cls):
        return issubclass(cls, self._subject.loop_type)


class Subject:
    """The loop under test, put behind asyncio's own names, and a count of the loops made while it was there."""

    def __init__(self, name):
        self.name = name
        self.module = importlib.import_module(name)
        self.made = collections.Counter()
        if name == "asyncio":
            self.new_loop, self.loop_type = StockSelectorLoop, StockSelectorLoop
        else:
            self.new_loop = self.module.new_event_loop
            loop = self.new_loop()
            self.loop_type = type(loop)
            loop.close()

    def make(self, selector=None):
        """Make a loop of the wanted type and count it."""
        if self.name == "asyncio":
            loop = self.new_loop(selector)
        else:
            # Some suites repeat themselves for each selector; a loop with its own poller has no use for one.
            if selector is not None:
                selector.close()
            loop = self.new_loop()
        self.made[type_name(loop)] += 1
        return loop

    def put_behind_asyncio(self):
        """Give out this loop wherever asyncio gives out its default loop."""
        self._count_other_loops()
        stand_in = StandIn(self)
        unix_events = asyncio.unix_events
        for module in (asyncio, unix_events):
            for loop_name in ("SelectorEventLoop", "EventLoop"):
                if hasattr(module, loop_name):
                    setattr(module, loop_name, stand_in)
        if self.name == "asyncio":
            unix_events._UnixDefaultEventLoopPolicy._loop_factory = stand_in
            return
        policy = self._policy_class()
        setattr(unix_events, POLICY_NAME, policy)
        if hasattr(asyncio.__dict__.get(POLICY_NAME), "new_event_loop"):
            setattr(asyncio, POLICY_NAME, policy)

    def put_types(self):
        """Put the loop's Task and Future in the place of the C classes."""
        task, future = getattr(self.module, "Task", StockTask), getattr(self.module, "Future", StockFuture)
        asyncio.tasks._CTask = asyncio.tasks.Task = asyncio.Task = task
        asyncio.futures._CFuture = asyncio.futures.Future = asyncio.Future = future
        if hasattr(asyncio, "create_eager_task_factory"):
            factory = asyncio.create_eager_task_factory(task)
            asyncio.tasks.eager_task_factory = asyncio.eager_task_factory = factory

    def check_places(self):
        """Ask each place for a loop; raise AssertionError if one does not give the wanted type."""
        policy = getattr(asyncio.unix_events, POLICY_NAME)
        with asyncio.Runner() as runner:
            given = {"Runner": runner.get_loop()}
        given["new_event_loop"] = asyncio.new_event_loop()
        given["SelectorEventLoop"] = asyncio.SelectorEventLoop()
        given["EventLoop"] = getattr(asyncio, "EventLoop", asyncio.SelectorEventLoop)()
        given["default policy"] = policy().new_event_loop()
        for place, loop in given.items():
            self._check_type(place, loop)
            loop.close()
        asyncio.events._set_event_loop_policy(None) if sys.version_info >= (3, 14) else asyncio.set_event_loop_policy(None)
        self.made.clear()

    def check_module(self, module):
        """Ask each loop factory of a test module for a loop, and look at the types its classes test."""
        typed = 0
        for name, cls in vars(module).items():
            if not (isinstance(cls, type) and issubclass(cls, unittest.TestCase)) or getattr(cls, "__unittest_skip__", False):
                continue
            if hasattr(cls, "create_event_loop"):
                loop = cls.create_event_loop(cls.__new__(cls))
                self._check_type(f"{name}.create_event_loop", loop)
                loop.close()
            typed += self._check_types(name, cls)
        self.made.clear()
        return typed

    def _check_type(self, place, loop):
        if type(loop) is not self.loop_type:
            raise AssertionError(f"{place} gives {type(loop)!r}, not {self.loop_type!r}")

    def _check_types(self, name, cls):
        """Count the attributes of a test class that hold our types; a stock C type among them is an error."""
        found = 0
        for stock, ours in ((StockTask, asyncio.Task), (StockFuture, asyncio.Future)):
            for attribute in ("Task", "Future", "cls"):
                tested = getattr(cls, attribute, None)
                if not isinstance(tested, type) or not issubclass(tested, stock):
                    continue
                if stock is StockFuture and issubclass(tested, StockTask):
                    continue  # a Task is a Future too
                if not issubclass(tested, ours):
                    raise AssertionError(f"{name}.{attribute} is still {tested!r}")
                found += 1
        return found

    def _policy_class(self):
        subject = self

        class Policy(self.module.EventLoopPolicy):
            def new_event_loop(self):
                loop = super().new_event_loop()
                subject.made[type_name(loop)] += 1
                return loop

        return Policy

    def _count_other_loops(self):
        init = asyncio.BaseEventLoop.__init__

        def counting_init(loop, *args, **kwargs):
            if type(loop) is not self.loop_type:
                self.made[type(loop).__qualname__] += 1
            init(loop, *args, **kwargs)

        asyncio.BaseEventLoop.__init__ = counting_init


def type_name(loop):
    return f"{type(loop).__module__.partition('.')[0]}.{type(loop).__qualname__}"


def close_any_loop():
    """Let the suite's clean-up close loops that lack the private `_default_executor` it looks at."""
    from test.test_asyncio import utils

    close_loop = utils.TestCase.close_loop

    def close(loop):
        if hasattr(loop, "_default_executor"):
            close_loop(loop)
        else:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    utils.TestCase.close_loop = staticmethod(close)


def follow_into_children(name):
    """Make the interpreters that tests start with `assert_python_ok('-c', ...)` use the loop as well."""
    from test.support import script_helper

    start = script_helper.assert_python_ok
    paths = [os.path.dirname(os.path.abspath(__file__)), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    prelude = f"import sys; sys.path[:0] = {paths!r}; import child; child.Subject({name!r}).put_behind_asyncio(); del sys, child\n"

    def assert_python_ok(*args, **env):
        args = list(args)
        if "-c" in args:
            args[args.index("-c") + 1] = prelude + args[args.index("-c") + 1]
        return start(*args, **env)

    script_helper.assert_python_ok = assert_python_ok


def use_real_loop(module):
    """Put the loop where a suite makes a bare BaseEventLoop to fill with mocks, or a simulated one without a script of time."""
    from test.test_asyncio import utils

    def loop_for_test(self):
        loop = asyncio.new_event_loop()
        self.set_event_loop(loop)
        return loop

    def set_up(self):
        utils.TestCase.setUp(self)
        self.loop = loop_for_test(self)

    simulated = utils.TestCase.new_test_loop
    utils.TestCase.new_test_loop = lambda self, gen=None: simulated(self, gen) if gen else loop_for_test(self)
    match module.__name__.rpartition(".")[2]:
        case "test_base_events":
            module.BaseEventLoopTests.setUp = set_up
            for name in DRIVEN_BY_MOCKS & vars(module.BaseEventLoopTests).keys():
                delattr(module.BaseEventLoopTests, name)
            for name in ("_write_to_self", "_process_events"):
                setattr(StockSelectorLoop, name, Fixed(getattr(StockSelectorLoop, name)))
        case "test_pep492":
            module.BaseTest.setUp = set_up
        case "test_runners":
            module.BaseTest.new_loop = lambda self: recording_shutdown(asyncio.SelectorEventLoop())


class Fixed:
    """A method that stays what it is when a test puts a mock in its place."""

    def __init__(self, method):
        self._method = method

    def __get__(self, loop, owner):
        return self._method.__get__(loop, owner)

    def __set__(self, loop, value):
        pass


def recording_shutdown(loop):
    """Make a loop note that its asynchronous generators were shut down, as test_runners wants to know."""
    shutdown_asyncgens = loop.shutdown_asyncgens

    async def recorded():
        loop.shutdown_ag_run = True
        await shutdown_asyncgens()

    loop.shutdown_ag_run = False
    loop.shutdown_asyncgens = recorded
    return loop


class Events:
    """The line-by-line report to the parent process."""

    def __init__(self, path):
        self._file = open(path, "a", buffering=1)
        self._pid = os.getpid()

    def send(self, event, **fields):
        if os.getpid() == self._pid:  # tests fork
            self._file.write(json.dumps({"event": event, **fields}) + "\n")


class Result(unittest.TestResult):
    """Sends the start and the outcome of every test as it happens."""

    def __init__(self, events):
        super().__init__()
        self._events = events
        self._running = None
        self._outcome = None

    def startTest(self, test):
        super().startTest(test)
        self._running, self._outcome, self._began = test.id(), ("pass", ""), time.monotonic()
        self._events.send("start", id=test.id())

    def stopTest(self, test):
        super().stopTest(test)
        if self._running is None:
            return  # 3.12.1 ends skipped tests that it does not start
        outcome, detail = self._outcome
        self._events.send("done", id=test.id(), outcome=outcome, detail=detail, seconds=time.monotonic() - self._began)
        self._running = None

    def addError(self, test, err):
        self._note(test, "error", self._text(err))

    def addFailure(self, test, err):
        self._note(test, "fail", self._text(err))

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self._note(test, "fail", f"{subtest}\n{self._text(err)}")

    def addSkip(self, test, reason):
        self._note(test, "skip", reason)

    def addExpectedFailure(self, test, err):
        self._note(test, "pass", "")

    def addUnexpectedSuccess(self, test):
        self._note(test, "fail", "marked as an expected failure, but passes")

    def _note(self, test, outcome, detail):
        if self._running is None:  # a fixture of a class or module, or a test skipped before its start
            self._events.send("fixture", id=test.id(), outcome=outcome, detail=detail)
        elif self._outcome[0] in ("pass", "skip"):
            self._outcome = (outcome, detail)

    @staticmethod
    def _text(err):
        return "".join(traceback.format_exception(*err))


def all_tests(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from all_tests(item)
        else:
            yield item


def main(loop, module_name, events_path, only_path=None):
    # A shell starts what it runs in the background with SIGINT ignored, and tests of Ctrl-C would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    events = Events(events_path)
    base_name, _, variant = module_name.partition("+")
    subject = Subject(loop)
    subject.put_behind_asyncio()
    subject.check_places()
    if base_name in TYPED_MODULES:
        subject.put_types()
    if loop != "asyncio":
        close_any_loop()
        follow_into_children(loop)
    try:
        module = importlib.import_module(f"test.test_asyncio.{base_name}")
    except unittest.SkipTest as exc:
        events.send("end", skipped=str(exc))
        return
    if variant:
        use_real_loop(module)
    typed = subject.check_module(module)
    if base_name in TYPED_MODULES and base_name != "test_futures" and not typed:
        raise AssertionError(f"no class of {module_name} has a Task or Future to replace")
    tests = list(all_tests(unittest.defaultTestLoader.loadTestsFromModule(module)))
    events.send("tests", ids=[test.id() for test in tests])
    if only_path is not None:
        with open(only_path) as file:
            only = set(json.load(file))
        tests = [test for test in tests if test.id() in only]
    unittest.TestSuite(tests).run(Result(events))
    events.send("end", loops=subject.made, typed=typed)


if __name__ == "__main__":
    main(*sys.argv[1:])
