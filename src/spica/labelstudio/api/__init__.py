"""Label Studio's REST interface, one module per kind of thing it keeps."""
