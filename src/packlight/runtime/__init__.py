"""Runs model files in a limited child process, and says what they cost there."""

from packlight.runtime.conversion import convert_file
from packlight.runtime.cpu import CpuFeatures, cpu_features, parse_cpuinfo
from packlight.runtime.limits import Limits
from packlight.runtime.process import Engine, Process, Session, has_engine
from packlight.runtime.profile import (
    Level,
    OperatorTime,
    measure_peak_memory,
    optimized_graph,
    profile_operators,
    runtime_name,
)

__all__ = [
    "CpuFeatures",
    "Engine",
    "Level",
    "Limits",
    "OperatorTime",
    "Process",
    "Session",
    "convert_file",
    "cpu_features",
    "has_engine",
    "measure_peak_memory",
    "optimized_graph",
    "parse_cpuinfo",
    "profile_operators",
    "runtime_name",
]
