"""The HTTP routes, one router a file. The only files beside app.py that import fastapi."""
