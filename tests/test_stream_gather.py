"""Many slow writers: what transports write then waits for the end of the turn, and behaves as if it had been sent."""

import asyncio
import contextlib
import select
import socket
import time

import pytest

import fastloop

WRITERS = 12
SLOW_TURNS = 4  # after which a loop is known to be slow (turn.c)


class Recorder(asyncio.Protocol):
    def __init__(self):
        self.calls = []

    def pause_writing(self):
        self.calls.append("pause")

    def resume_writing(self):
        self.calls.append("resume")

    def connection_lost(self, exc):
        self.calls.append(("lost", exc))


async def turn(*callbacks):
    """Run the callbacks one after the other in one turn of the loop; what they return."""
    loop, results = asyncio.get_running_loop(), []
    for callback in callbacks:
        loop.call_soon(lambda callback=callback: results.append(callback()))
    over = loop.create_future()
    loop.call_soon(over.set_result, None)
    await over
    assert len(results) == len(callbacks)
    return results


@contextlib.asynccontextmanager
async def writers(learn=True):
    """WRITERS transports, their peers' blocking sockets, on a loop that has learned that they are many and slow."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        transports, peers = [], []
        for _ in range(WRITERS):
            ours, peer = socket.socketpair()
            peers.append(stack.enter_context(peer))
            peer.settimeout(60)
            transport, _ = await loop.create_connection(Recorder, sock=ours)
            transports.append(transport)

        def slow(transport):
            transport.write(b"slow")
            time.sleep(0.001)

        for _ in range(SLOW_TURNS if learn else 0):
            await turn(*(lambda t=t: slow(t) for t in transports))
            assert [peer.recv(100) for peer in peers] == [b"slow"] * WRITERS
        yield transports, peers
        for transport in transports:
            transport.abort()


def run(main):
    fastloop.run(main())


def test_a_write_waits_for_the_end_of_the_turn():
    async def main():
        async with writers() as (transports, peers):

            def write(transport, peer):
                transport.write(b"a")
                transport.write(bytearray(b"b"))
                transport.writelines([b"c", b"d"])
                assert select.select([peer], [], [], 0) == ([], [], [])
                return transport.get_write_buffer_size()

            assert await turn(lambda: write(transports[0], peers[0])) == [4]
            assert peers[0].recv(100) == b"abcd"
            assert transports[0].get_write_buffer_size() == 0

    run(main)


def test_a_few_quick_writers_do_not_wait():
    async def main():
        async with writers(learn=False) as (transports, peers):
            for _ in range(3):
                for transport, peer in zip(transports, peers):

                    def write(transport=transport, peer=peer):
                        transport.write(b"now")
                        return peer.recv(100), transport.get_write_buffer_size()

                    assert await turn(write) == [(b"now", 0)]

    run(main)


def test_one_quick_turn_changes_nothing_and_several_do():
    async def main():
        async with writers() as (transports, peers):

            def write():
                transports[0].write(b"now")  # a single one, which is quick however long it takes
                return transports[0].get_write_buffer_size() == 0

            sent_at_once = [(await turn(write))[0] for _ in range(SLOW_TURNS + 2)]
            assert sent_at_once == [False] * SLOW_TURNS + [True] * 2
            assert peers[0].recv(100) == b"now" * len(sent_at_once)

    run(main)


@pytest.mark.parametrize("end", ["close", "write_eof", "abort"])
def test_an_end_comes_after_what_waits(end):
    async def main():
        async with writers() as (transports, peers):

            def write_and_end(transport):
                transport.write(b"last")
                getattr(transport, end)()

            await turn(*(lambda t=t: write_and_end(t) for t in transports))
            for peer in peers:
                assert (peer.recv(100), peer.recv(100)) == (b"last", b"")

    run(main)


def test_watermarks_count_what_waits():
    async def main():
        async with writers() as (transports, peers):
            protocol = transports[0].get_protocol()
            transports[0].set_write_buffer_limits(high=0)

            def write():
                transports[0].write(b"x" * 10)
                return transports[0].get_write_buffer_size(), list(protocol.calls)

            size, calls = (await turn(write))[0]
            assert (size > 0) == ("pause" in calls)
            assert peers[0].recv(100) == b"x" * 10
            assert calls in ([], protocol.calls[:1])
            assert protocol.calls in ([], ["pause", "resume"])

    run(main)


def test_a_long_turn_sends_before_its_end():
    async def main():
        async with writers() as (transports, peers):

            def write(transport):
                transport.write(b"x")
                time.sleep(0.002)

            def look():
                assert select.select([peers[0]], [], [], 0)[0] == [peers[0]]
                return peers[0].recv(100)

            *_, first = await turn(*(lambda t=t: write(t) for t in transports[:2]), look)
            assert first == b"x"
            assert peers[1].recv(100) == b"x"

    run(main)


class SlowReader(asyncio.Protocol):
    """Notes how often the loop had polled when data came and in the turn after that. `answers` are (transport, bytes)."""

    def __init__(self, answers):
        loop = asyncio.get_running_loop()
        self.answers = answers
        self.polls, self.done = [], loop.create_future()
        self.note = lambda: self.polls.append(loop.stats()["polls"])

    def data_received(self, data):
        loop = asyncio.get_running_loop()
        self.note()
        time.sleep(0.001)
        for transport, answer in self.answers:
            transport.write(answer)
        loop.call_soon(self.note)
        loop.call_soon(self.done.set_result, None)


@pytest.mark.parametrize("sends", [True, False])
@pytest.mark.parametrize("learn", [True, False])
def test_what_one_poll_brings_is_answered_before_the_next(learn, sends):
    """Also if an earlier request is answered in between."""

    async def main():
        async with writers(learn) as (transports, peers):
            reader = SlowReader([(transport, b"earlier") for transport in transports[1:3] if sends])
            transports[0].set_protocol(reader)
            peers[0].send(b"request")
            await reader.done
            received, answered = reader.polls
            assert answered - received == (0 if learn else 1)

    run(main)


def test_another_thread_does_not_wait():
    """asyncio forbids it, and sends it: a loop that sleeps would have no turn to end."""

    async def main():
        async with writers() as (transports, peers):

            def write():
                transports[0].write(b"x")
                return peers[0].recv(100)

            assert await asyncio.to_thread(write) == b"x"

    run(main)


def test_sendfile_comes_after_what_waits(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"file")

    async def main():
        async with writers() as (transports, peers):
            with path.open("rb") as file:
                transports[0].write(b"head ")
                await asyncio.get_running_loop().sendfile(transports[0], file)
            transports[0].write(b" tail")
            transports[0].close()
            received = b""
            while data := await asyncio.to_thread(peers[0].recv, 100):
                received += data
            assert received == b"head file tail"

    run(main)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_an_exception_that_ends_the_loop_comes_after_what_waits(exception):
    loop = fastloop.Loop()
    pending = []

    async def main():
        context = writers()
        transports, peers = await context.__aenter__()
        pending.append((context, peers))

        def fail():
            transports[0].write(b"first")
            transports[1].write(b"second")
            raise exception

        loop.call_soon(fail)
        await loop.create_future()

    task = loop.create_task(main())
    with pytest.raises(exception):
        loop.run_forever()
    (context, peers) = pending.pop()
    assert (peers[0].recv(100), peers[1].recv(100)) == (b"first", b"second")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()


def test_a_protocol_that_turns_the_loop_itself_has_sent():
    class Turner(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(b"before")
            asyncio.get_running_loop()._run_once()
            self.answered.set_result(self.transport.is_closing())

    async def main():
        loop = asyncio.get_running_loop()
        async with writers() as (transports, peers):
            protocol = Turner()
            protocol.transport, protocol.answered = transports[0], loop.create_future()
            transports[0].set_protocol(protocol)
            peers[0].send(b"go")
            assert not await protocol.answered
            assert peers[0].recv(100) == b"before"

    run(main)
