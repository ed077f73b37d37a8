"""The rules of the house, held by machine: what is where, who may import what, what the documents promise."""
