"""The store of model versions: a folder each, named by its content."""
