"""The deployment: what runs where and with how much. One frozen model a section of the YAML file.

The text below each field is its reference: unit and effect. In a file sizes, rates and durations carry a unit
(`10GiB`, `25GB/s`, `30ms`); here they are bytes, bytes per second and seconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationInfo,
    model_validator,
)

from .errors import Invalid
from .units import parse_duration, parse_rate, parse_size

FOLDER = "folder"
"""Validation context: folder that relative paths start from; present when the values come from a file."""
RESERVED_NAMES = frozenset({"scheduler", "prefetcher", "gateway"})
"""Names of the actors that are not devices."""


def _with_unit(parse):
    def read(value: Any, info: ValidationInfo) -> Any:
        # Code that builds a section speaks bytes and seconds; only a file needs units to be unambiguous.
        in_code = not (info.context and FOLDER in info.context)
        if in_code and isinstance(value, int | float) and not isinstance(value, bool):
            return value
        return parse(value)

    return BeforeValidator(read)


def _path(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value).strip():
        raise Invalid("is not a path", "write a path; relative ones start at this file's folder")
    path = Path(value).expanduser()
    folder = info.context.get(FOLDER) if info.context else None
    return (folder / path).resolve() if folder is not None else path


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]+", value):
        raise Invalid("is not a name", "use lower-case letters, digits and hyphens only, such as gpu-0")
    return value


def _device_name(value: str) -> str:
    if _name(value) in RESERVED_NAMES:
        raise Invalid("is the name of an actor that is no device", f"do not use {', '.join(sorted(RESERVED_NAMES))}")
    return value


def _torch_device(value: str) -> str:
    if re.fullmatch(r"cpu|emulated|cuda:(0|[1-9]\d*)", value):
        return value
    remedy = "did you mean cuda:0?" if value in ("cuda", "gpu") else "write cuda:0, cpu or emulated"
    raise Invalid("is not a torch device this program can use", remedy)


def _gamma(value: Any) -> Any:
    # Checked here: of a union of types pydantic would name one error for each.
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_GAMMA
    if value != "auto" and not whole:
        raise Invalid("is no number of draft tokens", f"write auto, or a whole number from 0 to {MAX_GAMMA}")
    return value


def _resource(value: str) -> str:
    if value.lower() in ("cpu", "gpu", "memory", "object_store_memory"):
        raise Invalid("is a resource that Ray defines itself", "name a custom one, such as moespac-worker")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]*", value):
        raise Invalid("is not the name of a Ray resource", "use letters, digits and _ . : - only")
    return value


MAX_GAMMA = 16
"""Most draft tokens a step; beyond that the chance that all are accepted is nil."""
DraftKind = Literal["model", "ngram", "self"]
Size = Annotated[StrictInt, _with_unit(parse_size), Field(ge=0)]
Rate = Annotated[float, _with_unit(parse_rate), Field(gt=0, allow_inf_nan=False)]
Duration = Annotated[float, _with_unit(parse_duration), Field(ge=0, allow_inf_nan=False)]
Timeout = Annotated[float, _with_unit(parse_duration), Field(gt=0, allow_inf_nan=False)]
ConfigPath = Annotated[Path, BeforeValidator(_path)]
Count = Annotated[StrictInt, Field(ge=1)]
Cores = tuple[Annotated[StrictInt, Field(ge=0)], ...] | None
Placement = Annotated[StrictStr, AfterValidator(_resource)] | None


def _one_core_a_thread(device):
    if device.cores is not None and (len(device.cores) != device.threads or len(set(device.cores)) != device.threads):
        raise Invalid(
            f"names {len(set(device.cores))} cores for {device.threads} threads",
            "name as many different cores as there are threads, or remove cores",
            ("cores",),
        )
    return device


class Section(BaseModel):
    """What all sections have in common: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(Section):
    """The model to serve."""

    target: ConfigPath
    """Folder of the Mixture-of-Experts checkpoint: config.json, safetensors, tokenizer.json."""
    draft: ConfigPath | None = None
    """Folder of a small dense checkpoint with the same tokenizer, proposing tokens; absent: no draft model."""
    store: ConfigPath | None = None
    """Folder of the converted experts, made on first use; absent: a folder below the user's cache folder."""
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of all arithmetic but the join of experts; float32 gives the reference's tokens exactly."""
    expert_format: Literal["stored", "float32", "bfloat16", "float16", "int8", "int4-g32", "int4-g128"] = "stored"
    """How experts are kept on disk and in memory; fewer bits: more fit and are read faster, at some loss."""
    expert_scales: Literal["float16", "bfloat16"] = "float16"
    """Type of the scales of int4 experts; bfloat16 has the range of float32, float16 is more precise."""
    trunk_format: Literal["stored", "int8", "int4-g32", "int4-g128"] = "stored"
    """How a device that computes on the CPU keeps the trunk's linear layers; others than `stored` at some loss."""

    @property
    def store_format(self) -> str | None:
        """What experts are converted to; None: they stay as the checkpoint has them."""
        return None if self.expert_format == "stored" else self.expert_format


class LinkConfig(Section):
    """The link between host memory and an emulated device: a transfer takes latency + bytes / bandwidth."""

    bandwidth: Rate
    """Bytes per second that a transfer moves at; lower makes every transfer of an expert slower."""
    latency: Duration
    """Seconds that each transfer takes before its first byte."""


class GpuDeviceConfig(Section):
    """The device that holds the trunk, the KV cache, the draft, and slots for experts worth keeping there."""

    kind: Literal["gpu"] = "gpu"
    """Chooses this section."""
    name: Annotated[StrictStr, AfterValidator(_device_name)]
    """Name in logs, metrics and the timeline; lower-case letters, digits and hyphens; unique."""
    torch_device: Annotated[StrictStr, AfterValidator(_torch_device)]
    """`cuda:N`, `cpu`, or `emulated`: computes on the CPU, with slots filled over a throttled `link`."""
    expert_memory: Size
    """Bytes for expert slots; more raises the hit rate; 0: every expert is computed from host memory.
    Behind a link two to four of 32 or more slots, a sixteenth at most, are for experts copied for one layer alone."""
    kv_memory: Size
    """Bytes for the KV caches of all running requests; a request that does not fit waits or is refused."""
    threads: Count = 1
    """CPU threads for trunk, draft and local experts."""
    cores: Cores = None
    """Cores to pin the threads to, one each; absent: the system places them."""
    link: LinkConfig | None = None
    """The emulated link; required for `emulated`, refused for real devices, whose link is what it is."""
    placement: Placement = None
    """Custom Ray resource that a node must offer to run this actor; absent: any node."""

    @property
    def has_link(self) -> bool:
        """Whether slots lie behind a link, real or emulated."""
        return self.torch_device != "cpu"

    _cores_are_the_threads = model_validator(mode="after")(_one_core_a_thread)

    @model_validator(mode="after")
    def _link_belongs_to_emulation(self) -> GpuDeviceConfig:
        if self.torch_device == "emulated" and self.link is None:
            raise Invalid(
                "is missing: an emulated device needs a link",
                "add link: {bandwidth: 4GB/s, latency: 20us}",
                ("link",),
            )
        if self.torch_device != "emulated" and self.link is not None:
            raise Invalid(
                f"is set for torch_device {self.torch_device}, whose link is real",
                "remove link, or set torch_device: emulated",
                ("link",),
            )
        return self


class CpuDeviceConfig(Section):
    """A worker that computes experts from host memory while the gpu device computes those in its slots."""

    kind: Literal["cpu"] = "cpu"
    """Chooses this section."""
    name: Annotated[StrictStr, AfterValidator(_device_name)]
    """Name in logs, metrics and the timeline; lower-case letters, digits and hyphens; unique."""
    threads: Count = 1
    """CPU threads for its experts."""
    cores: Cores = None
    """Cores to pin the threads to, one each; absent: the system places them."""
    arena: Literal["auto", "shared", "own"] = "auto"
    """`shared`: the arena of the prefetcher, on the same host; `own`: its own; `auto`: whichever works."""
    memory: Size | None = None
    """Bytes of its own arena; required for `own`, used by `auto` on another host than the prefetcher's."""
    lane: Literal["auto", "grpc"] = "auto"
    """How the device's calls reach it: `auto`: through shared memory on one host; `grpc`: never, to compare."""
    placement: Placement = None
    """Custom Ray resource that a node must offer to run this actor; absent: any node."""

    _cores_are_the_threads = model_validator(mode="after")(_one_core_a_thread)

    @model_validator(mode="after")
    def _memory_belongs_to_own_arena(self) -> CpuDeviceConfig:
        if self.arena == "own" and not self.memory:
            raise Invalid(
                "is missing: arena own needs memory",
                "add memory, such as 4GiB, or set arena: shared",
                ("memory",),
            )
        if self.arena == "shared" and self.memory is not None:
            raise Invalid(
                "is set, but arena shared uses the prefetcher's memory",
                "remove memory, or set arena: own",
                ("memory",),
            )
        return self


class PrefetcherConfig(Section):
    """The actor that brings experts from disk to the host arena and orders their way to the device."""

    host_memory: Size
    """Bytes of the arena shared by the actors of its host; other experts are read from disk when wanted."""
    readers: Count = 8
    """Disk reads in flight at once."""
    placement: Placement = None
    """Custom Ray resource that a node must offer to run this actor; absent: any node."""


class DraftConfig(Section):
    """Who proposes tokens for the target to verify, and how many. Changes speed, never the tokens."""

    kinds: tuple[DraftKind, ...] | None = None
    """`model`: model.draft; `ngram`: text seen before; `self`: the target by its resident experts; absent: all."""
    gamma: Annotated[Literal["auto"] | int, BeforeValidator(_gamma)] = "auto"
    """Tokens drafted per step; `auto`: 0 to 16, as long as another is measured to pay; 0: no speculation."""
    ngram_memory: Size = 2**20
    """Bytes for the texts of earlier requests that `ngram` looks in at every step, 4 a token, some 50 µs a MiB; 0: the
    request's own text only."""


class SchedulerConfig(Section):
    """The actor that admits requests, runs their steps and plans which experts are resident."""

    estimator: Literal["best", "as_described", "as_released", "decayed", "token_table"] = "best"
    """How routing becomes utilities: learned from the draft's tokens and recent routing; boundaries scaled to
    the window; the paper's released constants; decayed counts; a table of token ids times decayed counts."""
    max_running: Count = 4
    """Requests that take turns at once; each holds KV-cache memory."""
    max_waiting: Annotated[StrictInt, Field(ge=0)] = 64
    """Requests that may wait; further ones are refused with RESOURCE_EXHAUSTED."""
    prefill_chunk: Count = 256
    """Prompt tokens computed per pass; smaller lets other requests in between, larger is more efficient."""
    plan_form: Literal["threshold", "assignment"] = "threshold"
    """threshold: a layer's experts are wanted from some utility on, exact; assignment: each expert by itself."""
    plan_deadline: Timeout = 0.03
    """Seconds the solver may take for a plan; the greedy rule answers where it found nothing."""
    replan_every: Count = 8
    """Steps after which demand is looked at, and planned for anew if it has drifted. Between, utilities are renewed."""
    step_timeout: Timeout = 60.0
    """Seconds after which a step counts as failed; the device is looked for again, requests go on from their tokens."""
    placement: Placement = None
    """Custom Ray resource that a node must offer to run this actor; absent: any node."""


class ServiceConfig(Section):
    """Where clients connect."""

    host: Annotated[StrictStr, Field(min_length=1)] = "127.0.0.1"
    """Address to listen on; 127.0.0.1: this machine only. Anything else is reachable from the network."""
    port: Annotated[StrictInt, Field(ge=0, le=65535)] = 50051
    """TCP port of the client-facing gRPC service; 0: a free one, which is printed."""
    metrics_port: Annotated[StrictInt, Field(ge=0, le=65535)] | None = None
    """TCP port of the same host for Prometheus metrics by HTTP; 0: a free one, which is printed; absent: none."""
    drain_timeout: Duration = 30.0
    """Seconds that running requests are given to finish when the service is asked to stop."""

    @model_validator(mode="after")
    def _ports_differ(self) -> ServiceConfig:
        if self.metrics_port and self.metrics_port == self.port:
            raise Invalid("is service.port too", "choose another one, or 0 for a free one", ("metrics_port",))
        return self


Device = Annotated[GpuDeviceConfig | CpuDeviceConfig, Field(discriminator="kind")]


class Deployment(Section):
    """A whole deployment file."""

    name: Annotated[StrictStr, AfterValidator(_name)] = "moespac"
    """Name of the deployment: its Ray namespace and what `status` and `stop` address."""
    model: ModelConfig
    """The model to serve."""
    devices: tuple[Device, ...]
    """Exactly one device of kind gpu, and any number of kind cpu."""
    prefetcher: PrefetcherConfig
    """Host arena and disk."""
    draft: DraftConfig = DraftConfig()
    """Speculation."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """Requests and plans."""
    service: ServiceConfig = ServiceConfig()
    """Where clients connect."""

    @property
    def gpu(self) -> GpuDeviceConfig:
        """The device that holds the trunk."""
        return next(d for d in self.devices if isinstance(d, GpuDeviceConfig))

    @property
    def workers(self) -> tuple[CpuDeviceConfig, ...]:
        """The devices of kind cpu, in the file's order."""
        return tuple(d for d in self.devices if isinstance(d, CpuDeviceConfig))

    @property
    def draft_kinds(self) -> tuple[DraftKind, ...]:
        """The drafts to choose from."""
        if self.draft.gamma == 0:
            return ()
        if self.draft.kinds is not None:
            return self.draft.kinds
        there = {"model": self.model.draft is not None, "ngram": True, "self": self.gpu.expert_memory > 0}
        return tuple(kind for kind, exists in there.items() if exists)

    @property
    def most_drafted(self) -> int:
        """Draft tokens that a step may have unless its request says otherwise."""
        if not self.draft_kinds:
            return 0
        return MAX_GAMMA if self.draft.gamma == "auto" else self.draft.gamma

    @property
    def draft_model(self) -> Path | None:
        """Folder of the draft model, if it is used."""
        return self.model.draft if "model" in self.draft_kinds else None

    @model_validator(mode="after")
    def _sections_agree(self) -> Deployment:
        gpus = [i for i, d in enumerate(self.devices) if d.kind == "gpu"]
        if not gpus:
            raise Invalid(
                "no device of kind gpu: something must hold the trunk",
                "add one with kind: gpu; without a GPU give it torch_device: cpu",
                ("devices",),
            )
        if len(gpus) > 1:
            raise Invalid(
                "is the second device of kind gpu; one holds the trunk",
                "keep one device of kind gpu; make the others kind: cpu or remove them",
                ("devices", gpus[1], "kind"),
            )
        names: dict[str, int] = {}
        for i, device in enumerate(self.devices):
            if device.name in names:
                raise Invalid(
                    f"is the name of devices[{names[device.name]}] too",
                    "give every device its own name",
                    ("devices", i, "name"),
                )
            names[device.name] = i
        if self.prefetcher.placement != self.gpu.placement:
            raise Invalid(
                f"is {self.prefetcher.placement or 'any node'}, but {self.gpu.placement or 'any node'} for the device "
                f"{self.gpu.name}, which reads the prefetcher's memory",
                "give both the same placement",
                ("prefetcher", "placement"),
            )
        if self.model.trunk_format != "stored" and self.gpu.torch_device.startswith("cuda"):
            raise Invalid(
                f"is {self.model.trunk_format}, but the trunk is computed on {self.gpu.torch_device}",
                "set it to stored: only the CPU kernels compute a quantised trunk",
                ("model", "trunk_format"),
            )
        if self.model.trunk_format != "stored" and self.model.compute_dtype == "float16":
            raise Invalid(
                f"is {self.model.trunk_format}, but compute_dtype is float16, in which no CPU kernel computes",
                "set model.compute_dtype to bfloat16 or float32, or trunk_format to stored",
                ("model", "trunk_format"),
            )
        self._drafts_exist()
        return self

    def _drafts_exist(self) -> None:
        kinds, at = self.draft.kinds or (), ("draft", "kinds")
        if len(set(kinds)) < len(kinds):
            raise Invalid("names a draft twice", "name each once", at)
        if "model" in kinds and self.model.draft is None:
            raise Invalid("has model, but there is no draft model", "set model.draft, or take model out", at)
        if "self" in kinds and self.gpu.expert_memory == 0:
            raise Invalid(
                f"has self, but no expert is resident on {self.gpu.name}",
                "give it expert_memory, or take self out",
                at,
            )
        if self.draft.kinds == () and self.draft.gamma not in ("auto", 0):
            raise Invalid(
                f"is {self.draft.gamma}, but draft.kinds names nothing that proposes tokens",
                "name a draft, or set draft.gamma: 0",
                ("draft", "gamma"),
            )
