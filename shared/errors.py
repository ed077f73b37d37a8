"""Every error that may be told to somebody, as one tree with one code per class.

ReplicastError
├── BadInput                  invalid_value           a field is missing, of the wrong type, or out of bounds
│   ├── BadJson               invalid_json            the body cannot be parsed
│   ├── UnknownParameter      unknown_parameter       `strict` was asked for and a key is not known
│   ├── BadImage              invalid_image_file      a picture to work from cannot be read, or passes a limit
│   ├── InvalidAdapter        invalid_adapter         a LoRA file is damaged, passes a limit, or has NaN in it
│   ├── AdapterMisfit         adapter_does_not_fit    a LoRA changes nothing in this model, or is another family's
│   ├── UnequalLists          unequal_lists           lists that belong together have different lengths
│   ├── UnsupportedSize       unsupported_size        the model cannot make exactly this size
│   └── UnsupportedOperation  unsupported_operation   the model's family cannot do this
├── InvalidKey                invalid_api_key         the key is missing, unknown, or revoked
├── WrongRole                 insufficient_role       the key's role may not do this
├── OriginRefused             origin_not_allowed      a page from elsewhere asks
├── Misdirected               misdirected_request     the Host header names another server
├── UnknownModel              model_not_found         no model of this name is configured
├── UnknownWorker             worker_not_found        no worker of this name
├── UnknownJob                job_not_found           no job of this id that is not over
├── UnknownAdapter            lora_not_found          no LoRA of this name, or at this place
├── LoraRefused               lora_refused            a replica cannot take the new LoRA state: none has taken it
├── AdapterInUse              lora_in_use             a LoRA cannot be deleted while it is active
├── StateChanged              state_changed           another LoRA state than the one that was asked for
├── RouteNotFound             not_found               no such path
├── MethodNotAllowed          method_not_allowed      the path exists, the method does not
├── TooSlow                   request_timeout         the body did not arrive in time
├── TooLarge                  payload_too_large       the body passed its limit while it was read
├── UnsupportedMedia          unsupported_media_type  the content type cannot be read here
├── QueueFull                 queue_full              the model's queue is at its limit
├── RateLimited               rate_limit_exceeded     the key, or the address, asks too much
├── NotReady                  not_ready               no replica in step holds the model
│   ├── Draining              draining                the server is going down
│   └── SourceUnavailable     source_unavailable      where a file is kept does not answer, or not as it should
├── Expired                   expired                 the deadline passed first
├── Gone                      result_expired          what this address led to has expired
├── StorageFull               storage_full            there is no room where results are kept
├── Cancelled                 cancelled               nobody waits for the answer any more
├── ReplicaFailed             replica_failed          its workers died, and the attempts are used up
│   └── Poison                poison                  every worker that started it died
├── OutOfMemory               out_of_memory           it does not fit on the device
├── JobFailed                 job_failed              the pipeline raised
│   └── InvalidOutput         invalid_output          the picture has NaN in it
├── LoraFailed                lora_failed             a replica could not bring its weights into the wanted state
├── Behind                    behind                  a worker refuses work for a state it does not have
├── LoadFailed                load_failed             a model cannot be loaded
├── WireError                 wire_error              a frame from a peer cannot be understood
├── ConfigError               invalid_configuration   a setting is wrong; the server does not start
└── Internal                  internal_error          a bug of ours

Which HTTP status each one has is known in one place, `gateway/api/errors.py`.
"""

from __future__ import annotations

from collections.abc import Iterator


class ReplicastError(Exception):
    """What happened, in words a client may read.

    `param` names the field at fault. `retry_after_seconds` is set where trying again can help.
    """

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class BadInput(ReplicastError):
    code = "invalid_value"


class BadJson(BadInput):
    code = "invalid_json"


class UnknownParameter(BadInput):
    code = "unknown_parameter"


class BadImage(BadInput):
    code = "invalid_image_file"


class InvalidAdapter(BadInput):
    code = "invalid_adapter"


class AdapterMisfit(BadInput):
    code = "adapter_does_not_fit"


class UnequalLists(BadInput):
    code = "unequal_lists"


class UnsupportedSize(BadInput):
    code = "unsupported_size"


class UnsupportedOperation(BadInput):
    code = "unsupported_operation"


class InvalidKey(ReplicastError):
    code = "invalid_api_key"


class WrongRole(ReplicastError):
    code = "insufficient_role"


class OriginRefused(ReplicastError):
    code = "origin_not_allowed"


class Misdirected(ReplicastError):
    code = "misdirected_request"


class UnknownModel(ReplicastError):
    code = "model_not_found"


class UnknownWorker(ReplicastError):
    code = "worker_not_found"


class UnknownJob(ReplicastError):
    code = "job_not_found"


class UnknownAdapter(ReplicastError):
    code = "lora_not_found"


class LoraRefused(ReplicastError):
    code = "lora_refused"


class AdapterInUse(ReplicastError):
    code = "lora_in_use"


class StateChanged(ReplicastError):
    code = "state_changed"


class RouteNotFound(ReplicastError):
    code = "not_found"


class MethodNotAllowed(ReplicastError):
    code = "method_not_allowed"


class TooSlow(ReplicastError):
    code = "request_timeout"


class TooLarge(ReplicastError):
    code = "payload_too_large"


class UnsupportedMedia(ReplicastError):
    code = "unsupported_media_type"


class QueueFull(ReplicastError):
    code = "queue_full"


class RateLimited(ReplicastError):
    code = "rate_limit_exceeded"


class NotReady(ReplicastError):
    code = "not_ready"


class Draining(NotReady):
    code = "draining"


class SourceUnavailable(NotReady):
    code = "source_unavailable"


class Expired(ReplicastError):
    code = "expired"


class Gone(ReplicastError):
    code = "result_expired"


class StorageFull(ReplicastError):
    code = "storage_full"


class Cancelled(ReplicastError):
    code = "cancelled"


class ReplicaFailed(ReplicastError):
    code = "replica_failed"


class Poison(ReplicaFailed):
    code = "poison"


class OutOfMemory(ReplicastError):
    code = "out_of_memory"


class JobFailed(ReplicastError):
    code = "job_failed"


class InvalidOutput(JobFailed):
    code = "invalid_output"


class LoraFailed(ReplicastError):
    code = "lora_failed"


class Behind(ReplicastError):
    code = "behind"


class LoadFailed(ReplicastError):
    code = "load_failed"


class WireError(ReplicastError, ValueError):
    code = "wire_error"


class ConfigError(ReplicastError):
    code = "invalid_configuration"


class Internal(ReplicastError):
    code = "internal_error"


def tree(root: type[ReplicastError] = ReplicastError) -> Iterator[type[ReplicastError]]:
    """Every class below `root`, parents before children."""
    for child in root.__subclasses__():
        yield child
        yield from tree(child)


_BY_CODE = {cls.code: cls for cls in tree()}


def by_code(code: str) -> type[ReplicastError]:
    """The class of a code that came over the wire; one that is not known here is a failed job."""
    return _BY_CODE.get(code, JobFailed)
