"""What the gateway and the workers both speak: messages, wire, errors, logs, stores."""
