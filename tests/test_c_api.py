"""The core without Python: installed by CMake, found, linked and run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def has_cmake():
    """Whether there is a cmake as new as the build asks for, and a compiler."""
    if not (shutil.which("cmake") and shutil.which("cc")):
        return False
    words = subprocess.run(["cmake", "--version"], capture_output=True, text=True).stdout.split()
    return tuple(map(int, words[2].split(".")[:2])) >= (3, 26)


pytestmark = pytest.mark.skipif(not has_cmake(), reason="cmake 3.26 or later, or cc, is missing")


def run(*command, **options):
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Where the core is installed, built for one thread."""
    folder = tmp_path_factory.mktemp("core")
    build, prefix = folder / "build", folder / "prefix"
    options = ("-DCHAINRULE_OPENMP=OFF", "-DCHAINRULE_WERROR=ON", "-DCMAKE_INSTALL_LIBDIR=lib")
    run("cmake", "-S", ROOT, "-B", build, f"-DCMAKE_INSTALL_PREFIX={prefix}", *options)
    run("cmake", "--build", build, "--parallel", "2")
    run("cmake", "--install", build)
    return prefix


def build(source, folder, prefix):
    run("cmake", "-S", source, "-B", folder, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", folder)


def test_the_layer_calls_are_what_the_header_says(prefix, tmp_path):
    build(ROOT / "tests" / "c", tmp_path, prefix)
    assert run(tmp_path / "layers").startswith("0 failures")
    plain = run(tmp_path / "layers", env=os.environ | {"CHAINRULE_ISA": "portable"})
    assert "0 failures" in plain and "isa portable" in plain


def test_the_example_learns_xor(prefix, tmp_path):
    build(ROOT / "examples" / "c", tmp_path, prefix)
    assert "1 xor 0 = " in run(tmp_path / "xor")


def test_pkg_config_finds_the_library(prefix, tmp_path):
    if not shutil.which("pkg-config"):
        pytest.skip("pkg-config is not installed")
    env = os.environ | {"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", "chainrule", env=env).split()
    run("cc", ROOT / "examples" / "c" / "xor.c", "-o", tmp_path / "xor", *flags, "-lm")
    run(tmp_path / "xor", env=os.environ | {"LD_LIBRARY_PATH": str(prefix / "lib")})
