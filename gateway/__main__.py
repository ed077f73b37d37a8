"""`python -m gateway` is the `replicast` command, for callers that know their interpreter and not its scripts."""

from gateway.cli import main

main()
