"""One slice of GPUs, one process: what holds the pipelines and makes the pictures."""
