from __future__ import annotations

from pathlib import Path

from packlight.runtime.cpu import cpu_features, parse_cpuinfo

X86 = """processor\t: {number}
model name\t: AMD EPYC 7B13
physical id\t: 0
core id\t\t: {core}
flags\t\t: fpu sse2 avx avx2 {more}
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd {more}

processor\t: 1
BogoMIPS\t: 50.00
Features\t: fp asimd {more}

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


def _x86(more: str = "") -> str:
    """Two cores of two threads each."""
    return "\n".join(X86.format(number=n, core=n // 2, more=more) for n in range(4))


def test_x86_without_integer_dot_products() -> None:
    found = parse_cpuinfo(_x86())
    assert found.model == "AMD EPYC 7B13"
    assert found.cores == 2
    assert found.avx2
    assert not (found.vnni or found.amx or found.avx512 or found.arm_dot)


def test_x86_with_them() -> None:
    found = parse_cpuinfo(_x86("avx512f avx512_vnni amx_int8"))
    assert found.vnni and found.amx and found.avx512
    assert parse_cpuinfo(_x86("avx_vnni")).vnni
    assert not parse_cpuinfo(_x86("avx512f avx512_vnni_something")).vnni


def test_arm() -> None:
    found = parse_cpuinfo(ARM.format(more="asimddp"))
    assert found.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.cores == 2
    assert found.arm_dot
    assert not parse_cpuinfo(ARM.format(more="")).arm_dot


def test_only_usable_processors_count() -> None:
    assert parse_cpuinfo(_x86(), usable={0, 1}).cores == 1
    assert parse_cpuinfo(_x86(), usable={1, 2}).cores == 2


def test_nonsense_is_one_unknown_core() -> None:
    found = parse_cpuinfo("no colon here\n\n::\n")
    assert (found.model, found.cores) == ("unknown", 1)


def test_this_machine(tmp_path: Path) -> None:
    assert cpu_features().cores >= 1
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(_x86())
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("50000 100000\n")
    found = cpu_features(tmp_path)
    assert (found.model, found.cores) == ("AMD EPYC 7B13", 1)
    assert cpu_features(tmp_path / "absent").cores >= 1
