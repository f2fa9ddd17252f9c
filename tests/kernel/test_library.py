"""A processor without AVX-512 never runs code that was compiled for it."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNEL = Path(__file__).parents[2] / "kernel"
AVX512 = re.compile(r"%(zmm|k[0-7]|[xy]mm(1[6-9]|2\d|3[01]))")
tools = pytest.mark.skipif(
    platform.machine() != "x86_64" or not all(map(shutil.which, ("g++", "objdump"))),
    reason="needs x86-64, g++ and objdump",
)


def functions_with_avx512(source: str, folder: Path) -> list[str]:
    """Compile a file of the kernel without inlining, and return its functions that contain AVX-512 instructions.

    Without inlining, every inline function and template gets its own symbol, of which the linker keeps one copy.
    """
    compiled = str(folder / "compiled.o")
    options = ["-std=c++20", "-O3", "-fno-inline", "-fno-math-errno", "-Wno-psabi", "-Wno-ignored-attributes"]
    subprocess.run(["g++", *options, "-c", str(KERNEL / source), "-o", compiled], check=True, timeout=250)
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", compiled]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    functions = re.split(r"^[0-9a-f]+ <(.*)>:$", listing, flags=re.MULTILINE)
    return [name for name, body in zip(functions[1::2], functions[2::2], strict=True) if AVX512.search(body)]


@tools
def test_only_functions_of_its_own_namespace_are_compiled_for_avx_512(tmp_path: Path) -> None:
    found = functions_with_avx512("score_sixteen.cpp", tmp_path)
    assert found
    assert [name for name in found if not re.match(r"(void |auto )?stec::sixteen::", name)] == []


@tools
@pytest.mark.parametrize("source", ["model.cpp", "op.cpp", "score.cpp", "score_eight.cpp", "training.cpp"])
@pytest.mark.full
def test_the_other_files_contain_no_avx_512(source: str, tmp_path: Path) -> None:
    assert functions_with_avx512(source, tmp_path) == []
