"""From raw text to shards of tokens: readers, cleaning, filters, duplicates, decontamination, tokenising."""
