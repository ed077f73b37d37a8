"""The tables as they are now; a change here is a step in migrations/versions, and a test holds the two together."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Double, Integer, MetaData, Table, Text

METADATA = MetaData()

# Append-only: a row is a decision, and none is ever taken back or made twice under one number.
LORA_EPOCHS = Table(
    "lora_epochs",
    METADATA,
    Column("model", Text, primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("source", Text, nullable=False),
    Column("state", JSON, nullable=False),
    Column("digest", Text, nullable=False),
    Column("names", JSON, nullable=False),
    Column("status", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("at", Double, nullable=False),
)
