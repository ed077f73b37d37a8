"""Every message between gateway and worker, one frozen class each.

The table of who says what when, and what happens when it fails, is in `shared/README.md`. A field with a default may be
added freely; anything else moves PROTOCOL. `Hello` and `Reject` never change shape, so that two versions can always
tell each other why they do not fit. Lists arrive as tuples; images are attachments and never fields.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Literal

from pydantic import Field

from shared.cards import ImageFormat, ModelCard, Part, Task
from shared.errors import ReplicastError, by_code
from shared.loras import NO_LORAS, Adapter, LoraState

PROTOCOL = 1

Option = str | int | float | bool


class Problem(Part):
    """An error on its way across the wire: its code is one of `shared.errors`."""

    code: str
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: ReplicastError) -> Problem:
        return cls(code=error.code, message=error.message, param=error.param)

    def error(self) -> ReplicastError:
        """The error of this code, ready to be raised."""
        return by_code(self.code)(self.message, param=self.param)


class WantedModel(Part):
    """One model that a worker shall hold: where it comes from, how it runs, and its LoRA state by epoch."""

    id: str
    source: str
    backend: Literal["diffusion", "stub"]
    options: dict[str, Option] = Field(default_factory=dict)
    epoch: int = 0
    loras: LoraState = NO_LORAS

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of this state: equal digests mean equal pictures for equal requests."""
        canonical = self.model_dump_json(exclude={"options"}) + repr(sorted(self.options.items()))
        return hashlib.sha256(canonical.encode()).hexdigest()


class Wanted(Part):
    """The whole wanted state of a worker, never a difference: sending it twice is harmless.

    `shelf` is the folder where each LoRA lies as `<sha256>.safetensors`; what lies there never changes.
    """

    version: int
    models: tuple[WantedModel, ...]
    shelf: str = ""


class Resident(Part):
    """A model that a worker holds already, and in which state."""

    model: str
    epoch: int
    digest: str
    fingerprint: str = ""


class InHand(Part):
    """An attempt that a worker has in hand."""

    job: str
    attempt: int


class Device(Part):
    """What a worker runs on: `kind` with the names of its devices and their memory in bytes, all together."""

    kind: Literal["cuda", "cpu", "mps", "stub"]
    names: tuple[str, ...]
    memory_bytes: int = 0
    threads: int = 1


class Message(Part):
    """A message; the class name is its tag on the wire."""

    registry: ClassVar[dict[str, type[Message]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        Message.registry[cls.__name__] = cls


class Hello(Message):
    """Worker to gateway, first of all: who I am. Never changes shape."""

    protocol: int
    name: str
    token: str
    incarnation: str
    slots: int
    pid: int
    host: str
    device: Device
    resident: tuple[Resident, ...] = ()
    running: tuple[InHand, ...] = ()


class Reject(Message):
    """Gateway to worker: not you, and why. Never changes shape."""

    code: str
    message: str


class Welcome(Message):
    """Gateway to worker: your session, the whole wanted state, and how often you will be pinged."""

    session: str
    wanted: Wanted
    ping_seconds: float


class Want(Message):
    """Gateway to worker: the whole wanted state, again."""

    wanted: Wanted


class Match(Part):
    """What one LoRA does to a model: how many layers of which part it changes, and those that are not there.

    `unmatched` counts all of them; `unmatched_names` are the first of their names. `bytes` is what it takes in memory.
    """

    sha256: str
    matched: dict[str, int] = Field(default_factory=dict)
    unmatched: int = 0
    unmatched_names: tuple[str, ...] = ()
    bytes: int = 0


class Outcome(Part):
    """What became of one wanted model: its card and state, or the problem.

    `fingerprint` is a checksum over the bytes of every weight that a LoRA may touch; it is empty while none is held.
    """

    model: str
    problem: Problem | None = None
    card: ModelCard | None = None
    epoch: int = 0
    digest: str = ""
    fingerprint: str = ""
    memory_bytes: int = 0
    seconds: float = 0.0


class Prepare(Message):
    """Gateway to worker: could this model be in this LoRA state? Everything is checked and read, nothing is moved."""

    model: str
    epoch: int
    loras: LoraState


class Prepared(Message):
    """Worker to gateway: it could, with what each of its LoRAs would do; or the problem, and then it could not."""

    model: str
    epoch: int
    digest: str
    problem: Problem | None = None
    matches: tuple[Match, ...] = ()


class Ack(Message):
    """Worker to gateway: this version is applied, with the outcome for each model."""

    version: int
    outcomes: tuple[Outcome, ...]


# Where a mask is to be painted: where it is transparent, as OpenAI has it, or by how white, or how black, it is.
MaskKind = Literal["transparent", "white", "black"]


class Parameters(Part):
    """What is asked of a picture, every default resolved: the same with the same seed and inputs is the same picture.

    `strength` is of a variation or an inpainting. `mask_kind` says how a mask is read, `mask_blur` over how many pixels
    its edges run out. With `stretch` a picture of another shape is stretched where else its middle is cut out. With
    `transparent` the picture has an alpha channel. With `write_parameters` a PNG carries what it was made from, as text
    beside its pixels.
    """

    prompt: str
    negative_prompt: str = ""
    width: int
    height: int
    steps: int
    guidance: float
    strength: float | None = None
    mask_kind: MaskKind = "transparent"
    mask_blur: int = 0
    stretch: bool = False
    transparent: bool = False
    output_format: ImageFormat = "png"
    output_compression: int = 100
    write_parameters: bool = False


class Run(Message):
    """Gateway to worker: an attempt at a job, one image per seed; (epoch, digest) is the state to make it with.

    The attachments are the encoded pictures to work from, as they came; of an inpainting the last one is its mask. Of
    each image `previews` are to be shown while it is made, evenly spaced. Runs of one `batch` are made in one call,
    which begins when all `batch_size` of them are there; each has its own end. With `loras`, even none, these take the
    place of the model's own for this attempt alone.
    """

    job: str
    attempt: int
    model: str
    task: Task
    seeds: tuple[int, ...]
    parameters: Parameters
    epoch: int
    digest: str
    request_id: str = ""
    previews: int = 0
    batch: str = ""
    batch_size: int = 1
    loras: tuple[Adapter, ...] | None = None


class Progress(Message):
    """Worker to gateway: `step` of `total` is done; step 0 says that the device has started. May be dropped.

    With `preview`, counted from 0, the attachment shows what the picture will be, in the format and size asked for.
    """

    job: str
    attempt: int
    step: int
    total: int
    preview: int | None = None


class Tokens(Part):
    """How long the sequences were that the model read and wrote for one image: text, pictures given, picture made."""

    text: int = 0
    image_in: int = 0
    image_out: int = 0


class Timings(Part):
    """Where a job's time went in its worker, in milliseconds; each job of a batch has the time of the whole call."""

    wait_ms: float = 0.0
    inference_ms: float = 0.0
    encode_ms: float = 0.0
    batch: int = 1


class ImageFacts(Part):
    """What an attachment of Done holds."""

    seed: int
    width: int
    height: int
    format: ImageFormat
    bytes: int


class Done(Message):
    """Worker to gateway: the images of an attempt, one attachment each, in the order of its seeds."""

    job: str
    attempt: int
    images: tuple[ImageFacts, ...]
    timings: Timings
    tokens: Tokens = Tokens()


class Failed(Message):
    """Worker to gateway: this attempt ended without images."""

    job: str
    attempt: int
    problem: Problem


class Cancel(Message):
    """Gateway to worker: nobody waits for this attempt; its own Done or Failed ends it."""

    job: str
    attempt: int


class Ping(Message):
    """Gateway to worker, every `ping_seconds`."""

    count: int


class Pong(Message):
    """Worker to gateway: the answer, with the steps its device has made since it started and the memory it uses."""

    count: int
    steps: int
    memory_bytes: int


class Drain(Message):
    """Gateway to worker: finish what you have, take nothing more, say Bye."""

    reason: str


class Bye(Message):
    """Either way: the session is over."""

    reason: str
