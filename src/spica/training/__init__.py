"""From submitted annotations to a candidate version: the data set, the hold-out, the loop, the gate."""
