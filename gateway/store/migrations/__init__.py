"""How the tables came to be what they are: alembic's environment, and one file a step in versions/."""
