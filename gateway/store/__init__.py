"""What outlives a gateway: one SQLite file in the data folder, its tables, and what may be said of them."""
