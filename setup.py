"""Build of the one extension module, fastloop._core, from src/*.c.

Everything declarative is in pyproject.toml.  This file chooses the poller for the platform
and, where the extension cannot be built, says in one sentence what is missing.

Environment:
  CC, CFLAGS, LDFLAGS   as setuptools has them (CI adds -Werror and the sanitizers there)
  FASTLOOP_POLLER       "epoll" or "kqueue" instead of the platform's own; "kqueue" on Linux
                        builds against libkqueue (Debian: libkqueue-dev)
"""

import glob
import os
import shutil
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

POLLERS = {"epoll", "kqueue"}
KQUEUE_PLATFORMS = ("darwin", "freebsd", "openbsd", "netbsd", "dragonfly")


def unsupported():
    """Return why this interpreter can never run fastloop, or None."""
    implementation = sys.implementation.name
    if implementation != "cpython" or sys.version_info < (3, 11):
        version = "{}.{}".format(*sys.version_info)
        return f"fastloop needs CPython 3.11 or newer; this is {implementation} {version}."
    if not sys.platform.startswith(("linux", *KQUEUE_PLATFORMS)):
        return (
            "fastloop needs epoll or kqueue, that is Linux, macOS or a BSD; "
            f"this platform is {sys.platform!r}."
        )
    return None


def missing_tool(compiler):
    """Return what has to be installed before the extension can be compiled, or None."""
    if shutil.which(compiler) is None:
        return (
            f"fastloop is built from C and the compiler {compiler!r} was not found: "
            "install one (Debian: apt install gcc; macOS: xcode-select --install) "
            "or name yours in the environment variable CC."
        )
    include = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(include, "Python.h")):
        package = "python{}.{}-dev".format(*sys.version_info)
        return (
            f"fastloop is built from C and CPython's headers are not in {include!r}: "
            f"install them (Debian: apt install {package})."
        )
    return None


class BuildExt(build_ext):
    def run(self):
        self.stop_if(unsupported())
        super().run()

    def build_extensions(self):
        self.stop_if(missing_tool(self.compiler.compiler_so[0]))
        super().build_extensions()

    @staticmethod
    def stop_if(reason):
        if reason is not None:
            raise SystemExit(f"error: {reason}")


def poller():
    """Return the name of the poller to compile in: src/poll_<name>.c."""
    name = os.environ.get("FASTLOOP_POLLER")
    if not name:
        return "epoll" if sys.platform.startswith("linux") else "kqueue"
    if name not in POLLERS:
        raise SystemExit(f"error: FASTLOOP_POLLER is {name!r}; it may be epoll or kqueue.")
    return name


def core():
    """Return the description of fastloop._core."""
    chosen = poller()
    left_out = {f"poll_{name}.c" for name in POLLERS - {chosen}}
    sources = [s for s in glob.glob("src/*.c") if os.path.basename(s) not in left_out]
    libkqueue = chosen == "kqueue" and sys.platform.startswith("linux")
    return Extension(
        "fastloop._core",
        sources=sorted(sources),
        depends=sorted(glob.glob("src/*.h")),
        include_dirs=["/usr/include/kqueue"] if libkqueue else [],
        libraries=["kqueue"] if libkqueue else [],
        extra_compile_args=["-std=c11", "-fvisibility=hidden", "-O3"],
    )


setup(ext_modules=[core()], cmdclass={"build_ext": BuildExt})
