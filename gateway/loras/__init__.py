"""LoRAs as the gateway knows them: where their files come from, what is decided about them, and who has followed."""
