"""Jobs of several steps: what verbs of the command line do, callable from Python."""
