"""LoRAs in a worker: read from the shelf, matched with a model's layers, and brought into its weights.

Weights follow from a state and never from what came before: each touched tensor is taken back to its first bytes, then
the deltas are added. What the files of this package need of torch they import themselves; `shelf` needs none.
"""
