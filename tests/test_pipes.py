"""Pipe transports, on asyncio and on fastloop alike."""

import asyncio
import fcntl
import os
import pty
import socket
import tempfile

import pytest

import fastloop


def make_pipe():
    reading, writing = os.pipe()
    return open(reading, "rb", 0), open(writing, "wb", 0)


def make_fifo():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "fifo")
        os.mkfifo(path)
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        writing = os.open(path, os.O_WRONLY)
    return open(reading, "rb", 0), open(writing, "wb", 0)


def make_sockets():
    a, b = socket.socketpair()
    return open(a.detach(), "rb", 0), open(b.detach(), "wb", 0)


class Recorder(asyncio.Protocol):
    def __init__(self):
        self.calls = []
        self.data = bytearray()
        self.lost = asyncio.Event()
        self.changed = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport
        self.calls.append("connection_made")

    def data_received(self, data):
        assert type(data) is bytes
        self.data += data
        self.changed.set()

    def eof_received(self):
        self.calls.append("eof_received")

    def pause_writing(self):
        self.calls.append("pause_writing")

    def resume_writing(self):
        self.calls.append("resume_writing")

    def connection_lost(self, exc):
        self.calls.append(("connection_lost", type(exc)))
        self.lost.set()

    async def received(self, count):
        while len(self.data) < count:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 30)


@pytest.mark.parametrize("make", [make_pipe, make_fifo, make_sockets])
def test_both_ends(loop, make):
    payload = os.urandom(3_000_000)

    async def main():
        reading, writing = make()
        rt, rp = await loop.connect_read_pipe(Recorder, reading)
        wt, wp = await loop.connect_write_pipe(Recorder, writing)
        assert isinstance(rt, asyncio.ReadTransport)
        assert isinstance(wt, asyncio.WriteTransport)
        assert rt.get_extra_info("pipe") is reading and wt.get_extra_info("pipe") is writing
        assert f"fd={writing.fileno()}" in repr(wt)
        wt.write(b"")
        wt.write(b"first")
        await rp.received(5)
        mutable = bytearray(payload)
        for start in range(0, len(payload), 300_000):
            wt.write(payload[start : start + 100_000])
            wt.write(memoryview(mutable)[start + 100_000 : start + 200_000])
            wt.write(mutable[start + 200_000 : start + 300_000])
        mutable[:] = bytes(len(mutable))  # what was written is what counts
        assert wt.get_write_buffer_size() > 0
        assert wp.calls[-1] == "pause_writing"
        wt.close()  # the rest is sent first
        assert wt.is_closing()
        await rp.lost.wait()
        await wp.lost.wait()
        assert rp.data == b"first" + payload
        assert rp.calls == ["connection_made", "eof_received", ("connection_lost", type(None))]
        assert wp.calls[-1] == ("connection_lost", type(None))
        assert wt.get_write_buffer_size() == 0
        assert reading.closed and writing.closed

    loop.run_until_complete(main())


def test_reader_goes_away(loop):
    async def main():
        for waiting in (False, True):
            reading, writing = make_pipe()
            transport, protocol = await loop.connect_write_pipe(Recorder, writing)
            if waiting:
                transport.write(bytes(1_000_000))
            reading.close()
            await protocol.lost.wait()
            expected = BrokenPipeError if waiting else type(None)
            assert protocol.calls[-1] == ("connection_lost", expected)

    loop.run_until_complete(main())


def test_write_after_the_end_is_dropped(loop):
    async def main():
        reading, writing = make_pipe()
        transport, protocol = await loop.connect_write_pipe(Recorder, writing)
        assert transport.can_write_eof()
        transport.write(b"kept")
        transport.write_eof()
        transport.write(b"dropped")
        await protocol.lost.wait()
        assert reading.read() == b"kept"
        reading.close()

    loop.run_until_complete(main())


def test_abort_drops_what_waits(loop):
    async def main():
        reading, writing = make_pipe()
        transport, protocol = await loop.connect_write_pipe(Recorder, writing)
        transport.write(bytes(1_000_000))
        transport.abort()
        assert transport.get_write_buffer_size() == 0
        await protocol.lost.wait()
        assert len(reading.read()) < 1_000_000
        reading.close()

    loop.run_until_complete(main())


def test_paused_reading(loop):
    async def main():
        reading, writing = make_pipe()
        transport, protocol = await loop.connect_read_pipe(Recorder, reading)
        transport.pause_reading()
        assert not transport.is_reading()
        writing.write(b"later")
        await asyncio.sleep(0.01)
        assert not protocol.data
        transport.resume_reading()
        await protocol.received(5)
        transport.close()
        await protocol.lost.wait()
        writing.close()

    loop.run_until_complete(main())


def test_written_to_from_resume_writing(loop):
    class More(Recorder):
        def resume_writing(self):
            if self.calls.count("pause_writing") < 5:
                self.transport.write(bytes(1_500_000))
            else:
                self.transport.close()

    async def main():
        reading, writing = make_pipe()
        _, rp = await loop.connect_read_pipe(Recorder, reading)
        wt, _ = await loop.connect_write_pipe(More, writing)
        wt.write(bytes(1_500_000))
        await rp.lost.wait()
        assert len(rp.data) == 5 * 1_500_000

    loop.run_until_complete(main())


def test_terminal(loop):
    """A character device."""

    async def main():
        master, slave = pty.openpty()
        transport, protocol = await loop.connect_read_pipe(Recorder, open(master, "rb", 0))
        os.write(slave, b"x")
        await protocol.received(1)
        os.close(slave)  # the reading end then fails with EIO, which ends it
        await protocol.lost.wait()
        assert protocol.data == b"x"
        assert transport.is_closing()

    loop.run_until_complete(main())


def test_regular_file_is_refused(loop, tmp_path):
    (tmp_path / "file").write_bytes(b"x")

    async def main():
        with (tmp_path / "file").open("rb") as file:
            with pytest.raises(ValueError, match="Pipe transport is for pipes/sockets only"):
                await loop.connect_read_pipe(Recorder, file)
        with (tmp_path / "file").open("wb") as file:
            with pytest.raises(ValueError, match="Pipe transport is only for pipes, sockets"):
                await loop.connect_write_pipe(Recorder, file)

    loop.run_until_complete(main())


def test_wrong_type_written(loop):
    async def main():
        reading, writing = make_pipe()
        transport, protocol = await loop.connect_write_pipe(Recorder, writing)
        with pytest.raises(AssertionError):
            transport.write("text")
        transport.close()
        await protocol.lost.wait()
        reading.close()

    loop.run_until_complete(main())


def test_pipe_grows_for_bulk_data():
    """On fastloop, either end; not for little data, and not where somebody chose the size."""
    usual, large = 65536, 1048576
    loop = fastloop.new_event_loop()

    async def send(size, chosen=None):
        reading, writing = make_pipe()
        if chosen:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, chosen)
        copy = os.dup(reading.fileno())
        source, _ = await loop.connect_write_pipe(asyncio.Protocol, writing)
        source.write(bytes(size))
        transport, protocol = await loop.connect_read_pipe(Recorder, reading)
        await protocol.received(size)
        source.close()
        await asyncio.wait_for(protocol.lost.wait(), 30)
        capacity = fcntl.fcntl(copy, fcntl.F_GETPIPE_SZ)
        os.close(copy)
        return capacity

    assert loop.run_until_complete(send(2 * usual)) == usual
    assert loop.run_until_complete(send(64 * usual)) == large
    assert loop.run_until_complete(send(64 * usual, chosen=2 * usual)) == 2 * usual
    assert loop.run_until_complete(send(64 * usual, chosen=4096)) == 4096
    assert loop._large_pipes == 0
    loop._large_pipes = 16
    assert loop.run_until_complete(send(64 * usual)) == usual
    loop.close()


def test_reading_into_a_bytearray():
    """The loop's own way past the bytes objects."""
    loop = fastloop.new_event_loop()
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    array = bytearray(b"before ")
    with pytest.raises(BlockingIOError):
        loop._read_pipe_into(reading, 100, array)
    os.write(writing, b"some")
    assert loop._read_pipe_into(reading, 3, array) == b"m"
    assert loop._read_pipe_into(reading, 3, array) == b"e"
    assert array == b"before so"
    os.write(writing, b"x" * 50_000)
    with memoryview(array):
        assert loop._read_pipe_into(reading, 50_000, array) is None
    assert loop._read_pipe_into(reading, 40_000, array) == b"x"
    assert loop._read_pipe_into(reading, 40_000, array) == b"x"
    assert array == b"before so" + b"x" * 49_998
    os.close(writing)
    assert loop._read_pipe_into(reading, 100, array) == b""
    assert len(array) == 50_007
    for arguments in [(reading, 1), (reading, 1, b""), (reading, -1, array), ("x", 1, array)]:
        with pytest.raises((TypeError, OverflowError)):
            loop._read_pipe_into(*arguments)
    os.close(reading)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop._read_pipe_into(reading, 1, array)
    loop.close()


@pytest.mark.parametrize("offset", [0, 1, 16, 4000])
def test_reading_much_into_a_bytearray(offset):
    """Whole and in order, wherever the allocator puts it: some places are avoided by padding."""
    loop = fastloop.new_event_loop()
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    sent = bytes(range(251)) * 250
    kept = []  # of different sizes, so that each bytearray lies elsewhere
    for extra in range(40):
        kept.append(bytearray(offset + 112 * extra))
        array = bytearray()
        os.write(writing, sent)
        last = loop._read_pipe_into(reading, 40_000, array)
        assert array + last == sent[:40_000]
        array += last
        last = loop._read_pipe_into(reading, 40_000, array)
        assert array + last == sent
        kept.append(array)
    os.close(reading)
    os.close(writing)
    loop.close()
