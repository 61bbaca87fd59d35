"""One file for each outside format of annotated images: how it is told, read and written."""
