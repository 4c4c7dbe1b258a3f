"""Build of the one extension module, fastloop._core, from src/*.c."""

import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "fastloop._core",
            sources=sorted(glob.glob("src/*.c")),
            depends=sorted(glob.glob("src/*.h")),
            extra_compile_args=["-std=c11", "-fvisibility=hidden", "-O3"],
        )
    ]
)
