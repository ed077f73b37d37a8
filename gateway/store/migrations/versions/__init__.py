"""Each step of the schema, in the order of their names. A step that was released is never changed."""
