"""Quality filters, one a file, each with its published source. Their numbers are keys with the published defaults."""
