"""Why a worker ended or lost its work: closed sets, since they are the labels of figures."""

from __future__ import annotations

from typing import Literal

# Its process is no more, by itself (`ended`) or by our hand, or never was.
Death = Literal[
    "bad_result",
    "digest_mismatch",
    "ended",
    "illegal_message",
    "launch_failed",
    "load_timeout",
    "lora_failed",
    "no_hello",
    "requested",
    "silent",
    "stuck",
    "undeliverable",
    "wire_error",
]

# What it had in hand is handed out again.
Cause = Literal[Death, "batch_failed", "behind", "left", "superseded"]

# What a device has done is of no use: nobody waited for it any more, or it was lost with its worker.
Waste = Literal["cancelled", "lost"]
