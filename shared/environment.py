"""The names by which a launcher tells a worker who it is: the whole of a worker's configuration.

All else (models, LoRA sets, how often it is pinged) arrives from the gateway. The token is in the environment because
argv is visible to every user of the machine; the worker takes it out at once.
"""

ENDPOINT = "REPLICAST_WORKER_ENDPOINT"
NAME = "REPLICAST_WORKER_NAME"
TOKEN = "REPLICAST_WORKER_TOKEN"
DEVICE = "REPLICAST_WORKER_DEVICE"
THREADS = "REPLICAST_WORKER_THREADS"
PARENT = "REPLICAST_WORKER_PARENT"
LOG_LEVEL = "REPLICAST_WORKER_LOG_LEVEL"
LOG_FORMAT = "REPLICAST_WORKER_LOG_FORMAT"
