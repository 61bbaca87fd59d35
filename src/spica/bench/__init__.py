"""How fast this machine is with which way of computing, measured in turn in one run."""
