"""Faults by a seed against a live server: `make chaos SEED=1 SECONDS=60`.

`wishes` is what clients ask, `faults` what is done to the server, `target` the server under fire, `storm` brings them
together, and `history` says afterwards whether every answer was one that may be given. `soak` looks for what grows.
"""
