"""Floor 5: the command line. Verbs parse, call and print; what a Python caller would want lives below."""
