"""Deployments: the schema of their YAML files, and those shipped with the package."""

from .errors import ConfigError, Problem
from .load import key_lines, load_deployment
from .schema import (
    CpuDeviceConfig,
    Deployment,
    DraftConfig,
    GpuDeviceConfig,
    LinkConfig,
    ModelConfig,
    PrefetcherConfig,
    SchedulerConfig,
    ServiceConfig,
)

__all__ = [
    "ConfigError",
    "CpuDeviceConfig",
    "Deployment",
    "DraftConfig",
    "GpuDeviceConfig",
    "LinkConfig",
    "ModelConfig",
    "PrefetcherConfig",
    "Problem",
    "SchedulerConfig",
    "ServiceConfig",
    "key_lines",
    "load_deployment",
]
