"""Where files come from that are not on this machine: S3 and the hub. All of it blocks, and is imported on use."""
