"""The only room that knows Label Studio."""
