"""Where a run is deployed: `deploy.env`, one `KEY=value` a line, as `deploy.env.example` explains it."""

import difflib
import io
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv.parser import parse_stream
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from nanocode.config.refusals import requirement
from nanocode.config.settings import Bucket
from nanocode.run.exits import ConfigurationError
from nanocode.run.near import region_of

EXAMPLE = "deploy.env.example"
REQUIRED = ("PROJECT", "REGION", "ZONES", "BUCKET")


def _words(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    return dict(word.partition("=")[::2] for word in _words(value)) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
Region = Annotated[str, Field(pattern=r"^[a-z]+-[a-z]+[0-9]+$")]
Zone = Annotated[str, Field(pattern=r"^[a-z]+-[a-z]+[0-9]+-[a-z][a-z0-9]*$")]
FORMS = {
    "PROJECT": "a project's ID, which is neither its name nor its number, as my-project-123",
    "REGION": "one region, as us-east5",
    "ZONES": "zones with commas between them, as us-east5-b,us-east5-a",
    "BUCKET": "gs:// and a name in lower case, and no folder, as gs://my-bucket",
    "BUCKETS": "REGION=gs://NAME, several with commas, as europe-west4=gs://my-bucket-europe-west4",
    "TOPOLOGY": "as 2x4",
}
"""What keys look like whose pattern would tell few people anything."""
NO_CLUSTER = "none"
ASK_THE_TPU_API = ("queued-resource", "auto")
"""Provisioners that may ask for queued resources."""


class Deployment(BaseModel):
    """One project, cluster and bucket. The keys in the file are the names in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{4,28}[a-z0-9]$")]
    region: Region
    zones: Annotated[tuple[Zone, ...], BeforeValidator(_words)]
    bucket: Bucket
    buckets: Annotated[dict[Region, Bucket], BeforeValidator(_pairs)] = Field(default_factory=dict)
    cluster: Name = "nanocode"
    """`none`: there is none, and `nanocode run` on somebody's machine is the controller."""
    cluster_location: Name | None = None
    namespace: Name = "nanocode"
    kube_context: str | None = None
    repository: Name = "nanocode"
    image_tag: str | None = None
    accelerator: Literal["tpu", "nvidia", "none"] | None = None
    machine_type: str = "ct6e-standard-8t"
    topology: Annotated[str, Field(pattern=r"^\d+x\d+(x\d+)?$")] = "2x4"
    gpu_type: str = "nvidia-h100-80gb"
    gpus: int = Field(default=1, ge=1)
    node_pool: Name = "slices"
    spot: bool = True
    provisioner: Literal["existing", "gke", "queued-resource", "auto"] = "existing"
    dollars_per_slice_hour: float | None = Field(default=None, ge=0)
    budget_dollars: float | None = Field(default=None, gt=0)
    soul: Path | None = None
    teacher_secret: str = ""
    hf_secret: str = ""
    values: Words = ()

    @model_validator(mode="after")
    def _zones_are_in_the_region(self) -> Self:
        if self.buckets and self.provisioner not in ASK_THE_TPU_API:
            raise ValueError(
                f"BUCKETS is for slices of the Cloud TPU API, and PROVISIONER={self.provisioner} has all in one "
                "region: leave BUCKETS out, or set PROVISIONER=queued-resource"
            )
        if self.region in self.buckets:
            raise ValueError(f"BUCKETS names one for REGION={self.region}, where BUCKET is already: leave it out")
        if self.bucket in self.buckets.values():
            raise ValueError(f"BUCKETS names {self.bucket}, which is BUCKET: a bucket is in one region, name another")
        regions = (self.region, *self.buckets)
        if elsewhere := [zone for zone in self.zones if region_of(zone) not in regions]:
            own = f"BUCKETS={region_of(elsewhere[0])}=gs://..."
            how = own if self.provisioner in ASK_THE_TPU_API else f"with PROVISIONER=queued-resource {own}"
            raise ValueError(
                f"ZONES={elsewhere[0]} is not in REGION={self.region}: bucket, cluster and slices belong together; "
                f"{how} gives it a bucket of its own"
            )
        if not self.zones:
            raise ValueError("ZONES is empty: name at least one zone, best first")
        return self

    @model_validator(mode="after")
    def _without_a_cluster_slices_are_asked_for(self) -> Self:
        if not self.has_cluster and self.provisioner not in ASK_THE_TPU_API:
            raise ValueError(
                f"CLUSTER=none leaves nothing that PROVISIONER={self.provisioner} could use: set "
                "PROVISIONER=queued-resource, or name a cluster"
            )
        return self

    @model_validator(mode="after")
    def _machines_fit_the_accelerator(self) -> Self:
        tpu = re.fullmatch(r"ct.*-(1|4|8)t", self.machine_type) is not None
        if self.accelerator in (None, "tpu") and not tpu:
            raise ValueError(f"MACHINE_TYPE={self.machine_type} has no TPUs: ct6e-standard-8t holds 8 of them")
        if self.accelerator == "nvidia" and tpu:
            raise ValueError(f"MACHINE_TYPE={self.machine_type} has no GPUs: a3-highgpu-1g holds one H100")
        if tpu and self.chips[0] % self.chips[1]:
            raise ValueError(
                f"TOPOLOGY={self.topology} has {self.chips[0]} chips, which machines of {self.chips[1]} "
                f"(MACHINE_TYPE={self.machine_type}) do not make up"
            )
        return self

    @model_validator(mode="after")
    def _only_tpu_slices_are_asked_for(self) -> Self:
        if self.accelerator == "nvidia" and self.provisioner != "existing":
            raise ValueError(
                f"PROVISIONER={self.provisioner} asks for TPU slices, and ACCELERATOR=nvidia: set "
                "PROVISIONER=existing, for which `make gcp-setup` makes a pool of GPU nodes"
            )
        return self

    @model_validator(mode="after")
    def _a_budget_needs_a_price(self) -> Self:
        if self.budget_dollars is not None and self.dollars_per_slice_hour is None and not self.values:
            raise ValueError(
                f"BUDGET_DOLLARS={self.budget_dollars:g} cannot be kept while nobody has said what a slice costs: give "
                "DOLLARS_PER_SLICE_HOUR, or prices in a file of VALUES"
            )
        if self.budget_dollars is not None and self.buckets and not self.values:
            raise ValueError(
                f"BUDGET_DOLLARS={self.budget_dollars:g} cannot be kept while nobody has said what it costs to copy a "
                "GB to the regions of BUCKETS: give `settings: {prices: {egress_gb: ...}}` in a file of VALUES"
            )
        return self

    @property
    def has_cluster(self) -> bool:
        return self.cluster != NO_CLUSTER

    @property
    def all_buckets(self) -> dict[str, str]:
        """Region -> bucket, the run's own first."""
        return {self.region: self.bucket, **self.buckets}

    @property
    def regions(self) -> tuple[str, ...]:
        """Of the zones."""
        return tuple(dict.fromkeys(region_of(zone) for zone in self.zones))

    @property
    def location(self) -> str:
        """Of the cluster: a zonal one's control plane is what Google's free tier pays for."""
        return self.cluster_location or next((zone for zone in self.zones if self.is_home(zone)), self.region)

    def is_home(self, zone: str) -> bool:
        return region_of(zone) == self.region

    @property
    def context(self) -> str:
        """The name that `gcloud container clusters get-credentials` gives the cluster."""
        return self.kube_context or f"gke_{self.project}_{self.location}_{self.cluster}"

    @property
    def registry(self) -> str:
        return f"{self.registry_host}/{self.project}/{self.repository}"

    @property
    def registry_host(self) -> str:
        return f"{self.region}-docker.pkg.dev"

    def suited(self, preset: str) -> "Deployment":
        """With the accelerator that a preset takes where the file names none; only for TPUs slices are asked for."""
        accelerator = self.accelerator or ("none" if preset == "demo" else "tpu")
        provisioner = self.provisioner if accelerator == "tpu" else "existing"
        return self.model_copy(update={"accelerator": accelerator, "provisioner": provisioner})

    @property
    def target(self) -> str:
        """Of deploy/images/Dockerfile.jobs."""
        return {"nvidia": "cuda", "none": "cpu"}.get(self.accelerator or "tpu", "tpu")

    def service_account(self, role: Literal["controller", "trainer", "nodes", "slices"]) -> str:
        return f"nanocode-{role}@{self.project}.iam.gserviceaccount.com"

    @property
    def chips(self) -> tuple[int, int]:
        """Of the slice, and of one host of it."""
        total = 1
        for side in self.topology.split("x"):
            total *= int(side)
        return total, int(self.machine_type.rpartition("-")[2].removesuffix("t"))


def read(path: Path) -> Deployment:
    """What the file says; `ConfigurationError` names the key that is missing, unknown or wrong."""
    if not path.is_file():
        raise ConfigurationError(f"{path} is not there: cp {EXAMPLE} {path}, and fill in {', '.join(REQUIRED)}")
    said = dict[str, str]()
    for line in parse_stream(io.StringIO(path.read_text("utf-8"))):
        if line.error or (line.key is not None and line.value is None):
            text = line.original.string.strip()
            raise ConfigurationError(f"{path}, line {line.original.line}: {text} is no KEY=value: correct it")
        if line.key is not None:
            said[line.key] = (line.value or "").strip()
    if missing := [key for key in REQUIRED if not said.get(key)]:
        raise ConfigurationError(f"{path} says nothing for {missing[0]}: {EXAMPLE} shows what it may be")
    try:
        return Deployment.model_validate({key.lower(): value for key, value in said.items() if value})
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    one = error.errors()[0]
    key = ".".join(str(part) for part in one["loc"]).upper()
    if one["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, [name.upper() for name in Deployment.model_fields], n=1)
        return f"{key} is no key: did you mean {near[0]}?" if near else f"{key} is no key: {EXAMPLE} lists them"
    if one["type"] == "value_error":
        return requirement(one)
    key, *parts = [str(part) for part in one["loc"]]
    said = str(one["input"])
    if key == "buckets" and len(parts) == 1:  # a region's bucket; of the region itself the input says it all
        said = f"{parts[0]}={said}"
    wanted = requirement(one)
    if one["type"] == "string_pattern_mismatch" and (form := FORMS.get(key.upper())):
        wanted = f"has to be {form}"
    return f"{key.upper()}={said} cannot be: it {wanted}; {EXAMPLE} shows what it may be"
