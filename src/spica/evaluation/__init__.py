"""How good detections are: the field's metrics, and intervals around them. Neither torch nor Label Studio."""
