"""A machine and a model's sizes as constants, each with its source; uncertain ones with a range."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ...configs.errors import Invalid
from ...configs.source import dotted, read_source
from ...configs.units import parse_duration, parse_rate, parse_size
from ...errors import UserError


class BadHardware(UserError, ValueError):
    """A hardware file that cannot be used."""


def _flops(value: object) -> float:
    number, _, unit = str(value).partition("TFLOP/s")
    try:
        if unit or number == str(value):
            raise ValueError
        return float(number) * 1e12
    except ValueError:
        raise Invalid("is not a rate of arithmetic", "write a number of TFLOP/s, such as 1.5TFLOP/s") from None


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Constant(_Strict):
    """One number. `range`: where it lies if it is uncertain; every result's sensitivity to it is then reported."""

    value: float = Field(ge=0)
    source: str = Field(min_length=8)
    range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _inside(self) -> Constant:
        if self.range and not self.range[0] <= self.value <= self.range[1]:
            raise Invalid("value lies outside its range", "write range: [lowest, highest] around value")
        return self


def _constant(parse: Any) -> Any:
    def read(given: object) -> object:
        if not isinstance(given, dict):
            raise Invalid("is not a constant", "write {value: ..., source: ...} and range: [low, high] if uncertain")
        read_values = {**given}
        if "value" in given:
            read_values["value"] = parse(given["value"])
        if isinstance(given.get("range"), list):
            read_values["range"] = [parse(end) for end in given["range"]]
        return read_values

    return Annotated[Constant, BeforeValidator(read)]


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Invalid("is not a share", "write a number from 0 to 1")
    return float(value)


Rate, Duration, Size = _constant(parse_rate), _constant(parse_duration), _constant(parse_size)
Flops, Share = _constant(_flops), _constant(_share)


class Model(_Strict):
    """What is computed and moved, whichever routing a trace gives."""

    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    expert_bytes: Size
    trunk_layer_bytes: Size
    """Attention, norms and router of one layer."""
    head_bytes: Size
    """Output head, read once a pass."""


class Device(_Strict):
    memory_bandwidth: Rate
    memory_efficiency: Share
    """Share of the bandwidth that kernels of few tokens attain."""
    flops: Flops
    layer_overhead: Duration
    """Kernel launches and synchronisation of one layer of the target."""


class Cpu(_Strict):
    memory_bandwidth: Rate
    """Sustained, all cores together."""
    flops: Flops
    """Sustained in matrix products of a few rows, all cores together."""
    layer_call: Duration
    """Handing one layer's activations over and taking the rows back, inside one process."""


class Link(_Strict):
    bandwidth: Rate
    """From page-locked memory."""
    pageable_bandwidth: Rate
    host_contention: Share
    """Share of the link's traffic that is taken from the CPU's memory bandwidth."""
    latency: Duration
    """Start of one transfer, during which nothing flows."""


class Disk(_Strict):
    bandwidth: Rate
    host_memory: Size
    """Room for experts in host memory; the rest is read from disk when it is wanted."""


class Draft(_Strict):
    token_bytes: Size
    """Weights read for one draft token."""
    token_overhead: Duration


class Remote(_Strict):
    call: Duration
    """Round trip of one expert call to a worker in another process."""
    step: Duration
    """Round trip between scheduler and device, once a step."""


class Planner(_Strict):
    """What decisions beside the steps take; telling them takes a `remote.step`."""

    solve: Duration
    """A plan by the solver."""
    refresh: Duration
    """New utilities, after every step."""


class Speculation(_Strict):
    acceptance: Share
    """Probability that a draft token stands, given that those before it do."""
    gate_accuracy: Share
    """Share of experts that the next layer's gate, applied early, gets right."""


class Hardware(_Strict):
    """A hardware file."""

    name: str
    model: Model
    device: Device
    cpu: Cpu
    link: Link
    disk: Disk
    draft: Draft
    remote: Remote
    planner: Planner
    speculation: Speculation

    def uncertain(self) -> dict[str, tuple[float, float]]:
        """Dotted name → range of every constant that has one."""
        return {
            f"{section}.{name}": constant.range
            for section, part in self
            if isinstance(part, BaseModel)
            for name, constant in part
            if isinstance(constant, Constant) and constant.range
        }

    def value(self, name: str) -> float:
        """The constant called `name`, as in `uncertain`."""
        section, field = name.split(".")
        return getattr(getattr(self, section), field).value

    def with_value(self, name: str, value: float) -> Hardware:
        """The same with the constant called `name`, as in `uncertain`, set to `value`."""
        section, field = name.split(".")
        part = getattr(self, section)
        constant = getattr(part, field).model_copy(update={"value": value})
        return self.model_copy(update={section: part.model_copy(update={field: constant})})


def load_hardware(path: Path) -> Hardware:
    """Reads a hardware file. Raises BadHardware or ConfigError: file, line, field, value, what is wrong, remedy."""
    source = read_source(path)
    try:
        return Hardware.model_validate(source.values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = first["loc"]
        cause = (first.get("ctx") or {}).get("error")
        value = source.at(where)
        text = f" {value!r}" if value is not None and not isinstance(value, dict | list) else ""
        if isinstance(cause, Invalid):
            problem = str(cause)
        elif first["type"] == "missing":
            problem = f"is missing; add it, as in the hardware files that ship ({dotted(where)}: {{value, source}})"
        elif first["type"] == "extra_forbidden":
            problem = "is not a known key; remove it or mend its spelling"
        else:
            problem = f"{first['msg'][:1].lower()}{first['msg'][1:]}; mend it as in the hardware files that ship"
        raise BadHardware(f"{path}: line {source.line(where)}: {dotted(where)}{text}: {problem}") from None
