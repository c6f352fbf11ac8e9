"""The rewriting of any Keras graph: the user's model, loaded and served by faster graphs with the same weights."""
