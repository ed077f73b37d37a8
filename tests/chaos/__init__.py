"""Faults by a seed against a live server: `make chaos SEED=1 SECONDS=60`.

`wishes` is what clients ask, `faults` what is done to the server, `target` the server under fire, `storm` brings them
together, and `history` says afterwards whether every answer was one that may be given. Of LoRAs, `adapters` are those
there are, `orders` what is asked of them, `changes` sees to it, `account` is what was told of it, and `epochs` says
whether that may be. `stories` are made-up histories, with which both judges are tried. `soak` looks for what grows.
"""
