"""Quality filters, one a file, each with its published source."""
