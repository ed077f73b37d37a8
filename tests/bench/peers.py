"""The peer: a plain FastAPI program for the same work, in one process, as its documentation would have one write it.

It answers POST /v1/images/generations with one constant PNG in base64. A replica is a token that one request holds
while it sleeps; the others wait for a free one in the framework's own thread pool.
"""

import argparse
import base64
import queue
import time
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Generation(BaseModel):
    prompt: str
    model: str | None = None
    size: str = "512x512"
    seed: int | None = None


class Image(BaseModel):
    b64_json: str
    seed: int | None


class Images(BaseModel):
    created: int
    output_format: str
    size: str
    data: list[Image]


def create(png: bytes, replicas: int, step_seconds: float) -> FastAPI:
    """The whole program; each of `replicas` makes one picture at a time, in `step_seconds`."""
    app = FastAPI()
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for replica in range(replicas):
        free.put(replica)

    @app.get("/livez")
    def live() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/images/generations")
    def generate(wish: Generation) -> Images:
        replica = free.get()
        try:
            if step_seconds:
                time.sleep(step_seconds)
            made = png
        finally:
            free.put(replica)
        image = Image(b64_json=base64.b64encode(made).decode(), seed=wish.seed)
        return Images(created=int(time.time()), output_format="png", size=wish.size, data=[image])

    return app


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--step-seconds", type=float, required=True)
    parser.add_argument("--png", type=Path, required=True)
    told = parser.parse_args()
    app = create(told.png.read_bytes(), told.replicas, told.step_seconds)
    uvicorn.run(app, host="127.0.0.1", port=told.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
