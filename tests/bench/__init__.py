"""What the gateway itself costs, beside a plain program that does the same work; README.md says how to read it."""
