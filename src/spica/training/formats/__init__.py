"""One file for each outside format of annotated images: how it is recognised, read and written."""
