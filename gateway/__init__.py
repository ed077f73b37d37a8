"""HTTP in, workers behind: the gateway process and the `replicast` command."""
