"""Child processes: a mixin that sees each child's exit without help of signals.

asyncio's own transport spawns the child and talks to its pipes. What is ours is
how the loop learns that it exited: a pidfd in the loop's poller, so that no
SIGCHLD handler, no thread and no child watcher is needed, and a loop outside
the main thread has children as well. Where the kernel has no pidfd_open or a
sandbox forbids it, a thread per child waits for it instead.
"""

import asyncio
import functools
import os
import threading
from asyncio import unix_events
from asyncio.log import logger
from asyncio.unix_events import _UnixSubprocessTransport

_FastChildWatcher = getattr(unix_events, "FastChildWatcher", None)


class _PidFd:
    """Owns a pidfd until the child exited or the loop forgot the reader."""

    __slots__ = ("fd",)

    def __init__(self, pid):
        self.fd = -1
        self.fd = os.pidfd_open(pid)  # last: an object that cannot be made would leave it open

    def close(self):
        fd, self.fd = self.fd, -1
        os.close(fd)

    def __del__(self):
        if self.fd >= 0:
            self.close()


def _reap(pid, popen):
    """The exit status of a child that has exited, as Popen.returncode tells it."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        # Reaped by someone else. Popen.poll(), which transport.close() and,
        # up to 3.13, send_signal() call, has kept the status for us.
        if popen is not None and popen.returncode is not None:
            return popen.returncode
        logger.warning(
            "child process pid %d exit status already read: "
            " will report returncode 255",
            pid,
        )
        return 255
    try:
        return os.waitstatus_to_exitcode(status)
    except ValueError:
        return status  # neither exited nor killed: all we know


def _wait_for_exit(pid):
    """Block until the child has exited, leaving it to be reaped."""
    while True:
        try:
            info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return
        if info.si_code != os.CLD_STOPPED:
            return
        # macOS reports stopped children too (CPython gh-127049): take it away.
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)


def _watcher_that_reaps_all():
    """The FastChildWatcher (up to 3.13) that the program set and attached to a loop, or None.

    It takes the status of every child of the process away, so it has to be the one that is asked.
    """
    if _FastChildWatcher is None:
        return None
    watcher = getattr(asyncio.get_event_loop_policy(), "_watcher", None)
    return watcher if isinstance(watcher, _FastChildWatcher) and watcher.is_active() else None


class ProcessMixin:
    """loop.subprocess_exec() and subprocess_shell() without a child watcher."""

    async def _make_subprocess_transport(
        self, protocol, args, shell, stdin, stdout, stderr, bufsize, extra=None, **kwargs
    ):
        waiter = self.create_future()
        make = functools.partial(
            _UnixSubprocessTransport,
            self, protocol, args, shell, stdin, stdout, stderr, bufsize,
            waiter=waiter, extra=extra, **kwargs,
        )  # fmt: skip
        watcher = _watcher_that_reaps_all()
        if watcher is None:
            transport = make()
            self._watch_child(transport)
        else:
            with watcher:
                transport = make()
                watcher.add_child_handler(
                    transport.get_pid(), self._child_watcher_callback, transport
                )
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            await asyncio.shield(transport._wait())
            raise
        return transport

    def _watch_child(self, transport):
        pid = transport.get_pid()
        try:
            pidfd = _PidFd(pid)
        except (AttributeError, OSError):
            # Not there, forbidden, no descriptor left, or reaped already.
            threading.Thread(
                target=self._wait_in_thread,
                name=f"fastloop-waitpid-{pid}",
                args=(pid, transport),
                daemon=True,
            ).start()
        else:
            self._add_reader(pidfd.fd, self._pidfd_ready, pidfd, pid, transport)

    def _pidfd_ready(self, pidfd, pid, transport):
        self._remove_reader(pidfd.fd)
        pidfd.close()
        # asyncio's hook: how soon process_exited() follows differs by version
        self._child_watcher_callback(pid, _reap(pid, transport._proc), transport)

    def _wait_in_thread(self, pid, transport):
        popen = transport._proc
        if hasattr(os, "waitid"):
            # Reaped in the loop's thread, so that its send_signal() never
            # hits a stranger who was given the same pid.
            _wait_for_exit(pid)
            returncode = None
        else:  # macOS before 3.13
            returncode = _reap(pid, popen)
        try:
            self.call_soon_threadsafe(self._exit_seen_in_thread, pid, transport, returncode)
        except RuntimeError:  # closed: nobody else would reap it
            if returncode is None:
                _reap(pid, popen)
            logger.warning("Loop %r that handles pid %r is closed", self, pid)

    def _exit_seen_in_thread(self, pid, transport, returncode):
        if returncode is None:
            returncode = _reap(pid, transport._proc)
        self._child_watcher_callback(pid, returncode, transport)
