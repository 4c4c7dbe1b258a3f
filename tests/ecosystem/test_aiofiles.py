"""aiofiles: file calls in the loop's default executor."""

import asyncio
import hashlib

import pytest

aiofiles = pytest.importorskip("aiofiles")
aiofiles_os = pytest.importorskip("aiofiles.os")
tempfile = pytest.importorskip("aiofiles.tempfile")

pytestmark = pytest.mark.ecosystem("aiofiles")


def test_many_files_at_once(run, check_loop, tmp_path):
    async def copy(number):
        check_loop()
        data = hashlib.sha256(str(number).encode()).digest() * 1000
        async with aiofiles.open(tmp_path / f"{number}.bin", "wb") as file:
            for start in range(0, len(data), 8000):
                await file.write(data[start : start + 8000])
        async with aiofiles.open(tmp_path / f"{number}.bin", "rb") as file:
            assert await file.read() == data

    async def main():
        await asyncio.gather(*(copy(n) for n in range(100)))

    run(main)


def test_lines_seek_and_truncate(run, tmp_path):
    async def main():
        async with aiofiles.open(tmp_path / "lines", "w+") as file:
            await file.writelines(f"line {n}\n" for n in range(1000))
            await file.seek(0)
            assert [line async for line in file] == [f"line {n}\n" for n in range(1000)]
            await file.seek(7)
            assert await file.readline() == "line 1\n"
            await file.truncate(7)
        assert (tmp_path / "lines").read_text() == "line 0\n"

    run(main)


def test_errors_and_os_calls(run, tmp_path):
    async def main():
        with pytest.raises(FileNotFoundError):
            async with aiofiles.open(tmp_path / "missing"):
                pass
        async with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            assert await aiofiles_os.listdir(folder) == []
            await aiofiles_os.mkdir(f"{folder}/sub")
            assert await aiofiles_os.path.isdir(f"{folder}/sub")
        assert not await aiofiles_os.path.exists(folder)

    run(main)
