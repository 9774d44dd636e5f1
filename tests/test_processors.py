"""What the kernel says of a processor."""

import os

import pytest
from svrt.runtime import processors

TEXT = "processor : 0\nmodel name\t: X\ncpu MHz\t: 2594.3\nflags\t\t: fpu avx512_bf16\n\nprocessor : 1\n"


def test_a_processor_is_known_by_what_it_can_do(tmp_path):
    (tmp_path / "a").write_text(TEXT)
    (tmp_path / "b").write_text(TEXT.replace("2594.3", "3100.0"))
    (tmp_path / "c").write_text(TEXT.replace(" avx512_bf16", ""))
    a, b, c = (processors.processor(tmp_path / name) for name in "abc")
    assert a == b != c
    assert processors.processor(tmp_path / "none") == os.uname().machine


@pytest.mark.parametrize(
    ("line", "does"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16", True),
        ("flags\t\t: fpu avx512f avx512_vnni", False),
        ("Features\t: fp asimd i8mm bf16", True),
        ("Features\t: fp asimd asimdhp", False),
        ("model name\t: Xbf16", False),
    ],
)
def test_whether_it_multiplies_bfloat16_is_among_its_flags(tmp_path, line, does):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n")
    assert processors.multiplies_bfloat16(tmp_path / "cpuinfo") is does
