"""Training: samples, packed batches, optimisers, schedules, the loop."""
